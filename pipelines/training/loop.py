"""THE training loop. All it knows of a model is a phase: `forward(batch, step) -> (loss, metrics)`.

A tokenizer or a prior is one phase; an adversarial tokenizer is two, which take turns on the same batch. Every random
stream is a pure function of (seed, step, rank), and batches are a pure function of (seed, step): to resume, run the
same command again.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.base import distributed
from pipelines.base.errors import UserError
from pipelines.base.progress import progress
from pipelines.training.config import TrainingConfig
from pipelines.training.metrics_log import MetricsLog, draw_curves
from pipelines.training.optimizer import OptimizerConfig, WeightAverage, build_optimizer, learning_rate
from pipelines.training.run_folder import RunFolder

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """A module with its own optimizer and its own turn in every step."""

    module: nn.Module
    optimizer: OptimizerConfig


@dataclass(frozen=True)
class Job:
    """What the loop needs beside the phases; the callbacks get the modules whose weights will be published.

    `batches(start_step, rank, world)` yields this rank's share of every batch from `start_step` on. `validate` returns
    figures of the held-out split, of which `watched` (lower is better) picks the best weights. `publish(modules,
    folder)` writes a model folder, `draw(modules, step)` pictures.
    """

    batches: Callable[[int, int, int], Iterable[Batch]]
    validate: Callable[[Mapping[str, nn.Module]], dict[str, float]]
    publish: Callable[[Mapping[str, nn.Module], Path], None]
    draw: Callable[[Mapping[str, nn.Module], int], None]
    watched: str


class Runner:
    """One phase at work: the prepared module, its optimizer and its weight average."""

    def __init__(self, phase: Phase, config: TrainingConfig, accelerator: Accelerator):
        self.config, self.steps, self.accelerator = phase.optimizer, config.steps, accelerator
        self.raw = phase.module.to(accelerator.device)
        self.average = WeightAverage(self.raw, config.ema_decay) if config.ema_decay else None
        if config.compile:
            self.raw.compile()
        self.module, self.optimizer = accelerator.prepare(self.raw, build_optimizer(phase.optimizer, self.raw))

    def update(self, parts: list[Batch], step: int, seed: int) -> dict[str, Tensor]:
        """One optimizer step on a batch in parts; returns the metrics, averaged over the parts."""
        accelerator, totals = self.accelerator, {}
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        for index, part in enumerate(parts):
            distributed.seed_step(seed, step * len(parts) + index, accelerator.process_index)
            last = index == len(parts) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module):
                loss, metrics = self.module(part, step)
                accelerator.backward(loss / len(parts))
            for name, value in {"loss": loss, **metrics}.items():
                totals[name] = totals.get(name, 0) + value.detach() / len(parts)
        if self.config.max_grad_norm is not None:
            accelerator.unscale_gradients(self.optimizer)
            totals["gradient_norm"] = torch.nn.utils.clip_grad_norm_(
                self.module.parameters(), self.config.max_grad_norm
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step, self.steps)
        self.optimizer.step()
        if after_step := getattr(self.raw, "after_step", None):
            after_step(step)
        if self.average:
            self.average.update(self.raw)
        return totals

    @property
    def published(self) -> nn.Module:
        """The module whose weights are validated and saved: the average if there is one. In eval mode."""
        return (self.average.module if self.average else self.raw).eval()

    def state_dict(self) -> dict[str, Any]:
        average = self.average.state_dict() if self.average else None
        return {"module": self.raw.state_dict(), "optimizer": self.optimizer.state_dict(), "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.raw.load_state_dict(state["module"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])


def train(
    folder: RunFolder,
    phases: Mapping[str, Phase],
    config: TrainingConfig,
    seed: int,
    job: Job,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Train `phases` for `config.steps` updates, from the newest state in `folder` if there is one.

    Returns the figures of the last validation. Only the first process writes.

    Raises:
        UserError: the batch cannot be shared out, or the loss stopped being finite.
    """
    world, rank, main = accelerator.num_processes, accelerator.process_index, accelerator.is_main_process
    if config.batch_size % (world * config.gradient_accumulation_steps):
        raise UserError(
            f"training.batch_size: found {config.batch_size}, expected a multiple of processes x "
            f"gradient_accumulation_steps = {world} x {config.gradient_accumulation_steps}"
        )
    runners = {name: Runner(phase, config, accelerator) for name, phase in phases.items()}
    best, start = float("inf"), 0
    if state := folder.load_state():
        start, best = state["step"], state["best"]
        for name, runner in runners.items():
            runner.load_state_dict(state["phases"][name])
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    log = MetricsLog(folder.path / "metrics.jsonl", start) if main else None
    recent: list[dict[str, Tensor]] = []
    figures: dict[str, float] = {}

    def record(step: int, split: str, values: dict[str, float]) -> None:
        accelerator.log({f"{split}/{name}": value for name, value in values.items()}, step=step)
        if log:
            log.write(step, split, values)

    def save(step: int) -> None:
        accelerator.wait_for_everyone()
        if main:
            state = {
                "step": step,
                "best": best,
                "phases": {name: runner.state_dict() for name, runner in runners.items()},
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            }
            folder.save_state(step, state, config.keep_states)
        accelerator.wait_for_everyone()

    with progress(config.steps, folder.path.name, start=start, visible=main) as meter:
        for step, batch in enumerate(job.batches(start, rank, world), start=start):
            parts = _parts(batch, config.gradient_accumulation_steps, accelerator.device)
            metrics: dict[str, Tensor] = {}
            for name, runner in runners.items():
                prefix = f"{name}/" if len(runners) > 1 else ""
                metrics |= {prefix + key: value for key, value in runner.update(parts, step, seed).items()}
            recent.append(metrics)
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                means = _means(recent, accelerator)
                recent.clear()
                broken = [name for name, value in means.items() if name.endswith("loss") and value != value]
                if broken:
                    raise UserError(f"{folder.path}: {broken[0]} is not a number at step {done}; lower learning_rate")
                meter.note(**{name: value for name, value in means.items() if name.endswith("loss")})
                first = next(iter(runners.values()))
                record(done, "train", {**means, "learning_rate": first.optimizer.param_groups[0]["lr"]})
            if done % config.validate_every == 0 or done == config.steps:
                if main:
                    published = {name: runner.published for name, runner in runners.items()}
                    with torch.no_grad():
                        figures = job.validate(published)
                        job.draw(published, done)
                    record(done, "validation", figures)
                    if figures[job.watched] < best:
                        best = figures[job.watched]
                        job.publish(published, folder.path / "best")
                    draw_curves(folder.path / "metrics.jsonl", folder.path / "curves.png")
                accelerator.wait_for_everyone()
            if done % config.save_every == 0 or done == config.steps:
                save(done)
            meter.advance()
    if main:
        published = {name: runner.published for name, runner in runners.items()}
        if not figures:  # killed after the last state, before the folder was finished
            figures = job.validate(published)
        job.publish(published, folder.path / "last")
        folder.finish({"steps": config.steps, "best": {job.watched: best}, "validation": figures})
    for tracker in accelerator.trackers:  # end_training would take the process group with it, which a chain still needs
        tracker.finish()
    accelerator.wait_for_everyone()
    return figures


def _parts(batch: Batch, count: int, device: torch.device) -> list[Batch]:
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    cut = {name: value.chunk(count) for name, value in moved.items()}
    return [{name: pieces[index] for name, pieces in cut.items()} for index in range(count)]


def _means(recent: list[dict[str, Tensor]], accelerator: Accelerator) -> dict[str, float]:
    """Means over the steps since the last call and over the processes."""
    names = sorted(recent[0])
    stacked = torch.stack([torch.stack([metrics[name].float().cpu() for name in names]) for metrics in recent]).mean(
        dim=0
    )
    reduced = accelerator.reduce(stacked.to(accelerator.device), reduction="mean")
    return dict(zip(names, reduced.tolist(), strict=True))
