"""A task so small that every property of the loop can be checked to the last bit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from pipelines.base import distributed
from pipelines.training.config import TokenizerTrainingConfig, TrainingConfig
from pipelines.training.loop import TrainingLoop
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.run_folder import RunFolder
from pipelines.training.task import OptimizedPhase
from pipelines.training.validation import mean_figures, own_rows

OPTIMIZER = OptimizerConfig(learning_rate=0.05, warmup=2)
QUICK = TokenizerTrainingConfig(
    steps=20, batch_size=24, optimizer=OPTIMIZER, validate_every=5, save_every=4, log_every=3, ema_decay=0.9
)


class Recipe(BaseModel):
    name: str = "toy"
    output: Path = Path("unused")
    seed: int = 0
    training: TrainingConfig = QUICK


class Network(nn.Module):
    """Dropout makes the loss depend on the random stream; unused parameters and buffers must not disturb anything."""

    seen: Tensor

    def __init__(self, dropout: float = 0.5):
        super().__init__()
        self.dropout = dropout
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((4, 33), (33, 17), (17, 1)))
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(x, self.dropout, self.training)
        for layer in self.layers:
            x = layer(x).tanh() if layer is not self.layers[-1] else layer(x)
        return x.squeeze(-1)


class Regression(nn.Module):
    """A phase, as the loop wants it. The buffer is folded in by `after_step`, once for all parts of a batch."""

    collected: Tensor

    def __init__(self, model: nn.Module | None = None):
        super().__init__()
        self.model = model or Network()
        self.register_buffer("collected", torch.zeros(()), persistent=False)

    def forward(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self.training:
            self.collected += len(batch["x"])
        loss = (self.model(batch["x"]) - batch["y"]).square().mean()
        return loss, {"error": loss.detach()}

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def after_step(self, step: int) -> None:
        self.model.get_buffer("seen").add_(self.collected)
        self.collected.zero_()


def examples(seed: int, size: int) -> dict[str, Tensor]:
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "y": x.sum(1)}


class ToyTask:
    """Learns a sum. `broken` may change or interrupt the batch of a step."""

    monitor = "error"
    best_is_latest = False

    def __init__(
        self,
        config: TrainingConfig = QUICK,
        phases: dict[str, nn.Module] | None = None,
        broken: Callable[[int, dict[str, Tensor]], dict[str, Tensor]] = lambda step, batch: batch,
    ):
        torch.manual_seed(3)
        self.config, self.broken = config, broken
        modules = phases or {"toy": Regression()}
        self.phases = {name: OptimizedPhase(phase, config.optimizer) for name, phase in modules.items()}  # type: ignore[arg-type]

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        size = self.config.batch_size
        for step in range(start_step, self.config.steps):
            share = slice(rank * size // world, (rank + 1) * size // world)
            yield self.broken(step, {name: value[share] for name, value in examples(step, size).items()})

    def validate(self, models: Any, collective: Any) -> dict[str, float]:
        model, rows = next(iter(models.values())), examples(10**6, 67)

        def blocks():
            own = own_rows(67, 8, collective)
            for first in range(0, len(own), 8):
                index = own[first : first + 8]
                yield {"error": (model(rows["x"][index]) - rows["y"][index]).square()}

        return mean_figures(blocks(), collective)

    def publish(self, models: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: model.state_dict() for name, model in models.items()}, folder / "weights.pt")

    def save_figures(self, models: Any, folder: Path, step: int) -> None:
        pass


def run(path: Path, task: ToyTask | None = None, recipe: Recipe | None = None) -> RunFolder:
    task = task or ToyTask()
    folder, accelerator = RunFolder(path), distributed.start(task.config.precision)
    recipe = recipe or Recipe(training=task.config)
    with folder.begin(recipe, {}, False, accelerator):
        TrainingLoop(task, task.config, 0, folder, accelerator).run()
    return folder


def weights(folder: RunFolder, which: str = "last") -> dict[str, dict[str, Tensor]]:
    return torch.load(folder.path / which / "weights.pt", weights_only=True)


def equal(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    return all(torch.equal(a[phase][name], b[phase][name]) for phase in a for name in a[phase])


def lines(folder: RunFolder, split: str) -> list[dict]:
    found = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["split"] == split]
