"""Laws of the loop, on phases so small that every law can be checked to the last bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from torch import nn

from pipelines.base import distributed
from pipelines.base.errors import UserError
from pipelines.training.config import TrainingConfig
from pipelines.training.loop import Job, Phase, train
from pipelines.training.optimizer import OptimizerConfig, WeightAverage, learning_rate
from pipelines.training.run_folder import RunFolder


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing them takes longer than the training here; test_tracking.py draws some."""
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, picture: None)


class Recipe(BaseModel):
    name: str = "toy"
    training: TrainingConfig = TrainingConfig(steps=1)


class Regression(nn.Module):
    """Dropout makes the loss depend on the random stream, which resuming must restore."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch, step):
        if self.training:
            self.seen += len(batch["x"])
        x = nn.functional.dropout(batch["x"], 0.5, self.training)
        loss = (self.linear(x).squeeze(-1) - batch["y"]).square().mean()
        return loss, {"error": loss.detach()}


def batches(steps, size=8, noise=0.0):
    def serve(start, rank, world):
        for step in range(start, steps):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(size, 4, generator=generator)
            share = slice(rank * size // world, (rank + 1) * size // world)
            yield {"x": x[share], "y": x.sum(1)[share]}

    return serve


def job(steps, watched="error"):
    generator = torch.Generator().manual_seed(10**6)
    x = torch.randn(64, 4, generator=generator)

    def publish(modules, target):
        target.mkdir(parents=True, exist_ok=True)
        torch.save({name: module.state_dict() for name, module in modules.items()}, target / "weights.pt")

    def validate(modules):
        first = next(iter(modules.values()))
        return {"error": first({"x": x, "y": x.sum(1)}, 0)[0].item()}

    return Job(batches(steps), validate, publish, lambda modules, step: None, watched)


def run(path, config, phases=None, steps=None, seed=0):
    torch.manual_seed(3)
    phases = phases or {"toy": Phase(Regression(), OptimizerConfig(learning_rate=0.05, warmup=2))}
    folder = RunFolder(path)
    folder.open(Recipe(training=config), overwrite=False)
    train(folder, phases, config, seed, steps or job(config.steps), distributed.start())
    return folder


def final(folder):
    return torch.load(folder.path / "last" / "weights.pt", weights_only=True)


def equal(a, b):
    return all(torch.equal(a[phase][name], b[phase][name]) for phase in a for name in a[phase])


QUICK = TrainingConfig(steps=20, batch_size=8, validate_every=5, save_every=4, log_every=3, ema_decay=0.9)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 4, 5, 11, 19])
def test_resumed_equals_uninterrupted(tmp_path, stop):
    whole = run(tmp_path / "whole", QUICK)
    full = job(QUICK.steps)

    def broken(start, rank, world):
        for step, batch in enumerate(full.batches(start, rank, world), start):
            if step == stop:
                raise Interrupted
            yield batch

    cut = Job(broken, full.validate, full.publish, full.draw, full.watched)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", QUICK, steps=cut)
    resumed = run(tmp_path / "cut", QUICK)
    assert equal(final(whole), final(resumed))
    lines = [json.loads(line) for line in (resumed.path / "metrics.jsonl").read_text().splitlines()]
    validated = [(line["step"], line["error"]) for line in lines if line["split"] == "validation"]
    assert [step for step, _ in validated] == [5, 10, 15, 20]


def test_accumulated_parts_make_the_same_update(tmp_path):
    class Plain(Regression):
        def forward(self, batch, step):
            loss = (self.linear(batch["x"]).squeeze(-1) - batch["y"]).square().mean()
            return loss, {"error": loss.detach()}

    results = []
    for parts in (1, 2, 4):
        torch.manual_seed(3)
        phases = {"toy": Phase(Plain(), OptimizerConfig(learning_rate=0.05))}
        config = QUICK.model_copy(update={"gradient_accumulation_steps": parts})
        results.append(final(run(tmp_path / str(parts), config, phases))["toy"]["linear.weight"])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_two_phases_take_turns_on_the_same_batch(tmp_path):
    """A generator and a critic, each with its own optimizer; neither turn moves the other's weights."""
    seen: list[tuple[str, int, float]] = []

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, batch, step):
            seen.append(("generator", step, batch["x"].sum().item()))
            loss = -critic.score(self.linear(batch["x"])).mean()
            return loss, {"score": -loss.detach()}

    class Critic(nn.Module):
        def __init__(self, generator):
            super().__init__()
            self.linear = nn.Linear(4, 1)
            self.others = [generator]  # in a list: shown to, but not owned by, this phase

        def score(self, x):
            return self.linear(x).tanh()

        def forward(self, batch, step):
            seen.append(("critic", step, batch["x"].sum().item()))
            with torch.no_grad():
                fake = self.others[0].linear(batch["x"])
            loss = self.score(fake).mean() - self.score(batch["x"]).mean()
            return loss, {"gap": -loss.detach()}

    torch.manual_seed(0)
    generator = Generator()
    critic = Critic(generator)
    before = {"generator": generator.linear.weight.clone(), "critic": critic.linear.weight.clone()}
    phases = {
        "generator": Phase(generator, OptimizerConfig(learning_rate=0.1, warmup=0)),
        "critic": Phase(critic, OptimizerConfig(learning_rate=1e-9, warmup=0)),
    }
    quick = TrainingConfig(steps=3, batch_size=8, validate_every=3, ema_decay=None)
    full = job(3)
    silent = Job(full.batches, lambda modules: {"error": 0.0}, full.publish, full.draw, "error")
    folder = run(tmp_path / "two", quick, phases, silent)
    turns = [(name, step) for name, step, _ in seen]
    assert turns == [(name, step) for step in range(3) for name in ("generator", "critic")]
    assert all(seen[i][2] == seen[i + 1][2] for i in range(0, 6, 2))
    moved = {name: (phase.module.linear.weight - before[name]).abs().max().item() for name, phase in phases.items()}
    assert moved["generator"] > 0.05 and moved["critic"] < 1e-7
    metrics = json.loads((folder.path / "metrics.jsonl").read_text().splitlines()[0])
    assert {"generator/score", "critic/gap"} <= metrics.keys()


def test_best_is_the_lowest_validation_and_states_are_kept_newest(tmp_path):
    figures = iter([3.0, 1.0, 2.0, 4.0])
    full = job(20)
    scripted = Job(full.batches, lambda modules: {"error": next(figures)}, full.publish, full.draw, "error")
    folder = run(tmp_path / "run", QUICK.model_copy(update={"ema_decay": None}), steps=scripted)
    best = torch.load(folder.path / "best" / "weights.pt", weights_only=True)
    reference = run(tmp_path / "ten", QUICK.model_copy(update={"ema_decay": None}))
    assert not equal(best, final(folder))
    assert best["toy"]["seen"] == 10 * 8 and final(reference)["toy"]["seen"] == 20 * 8
    assert [state.name for state in folder.states()] == ["step-00000016", "step-00000020"]
    assert json.loads((folder.path / "done.json").read_text())["best"] == {"error": 1.0}


def test_bad_batch_size_and_nan_are_named(tmp_path):
    with pytest.raises(UserError, match=r"training.batch_size: found 8, expected a multiple .* 1 x 3"):
        run(tmp_path / "a", QUICK.model_copy(update={"gradient_accumulation_steps": 3}))
    full = job(20)
    torn = Job(
        lambda *a: ({"x": b["x"], "y": b["y"] * float("nan")} for b in full.batches(*a)),
        full.validate,
        full.publish,
        full.draw,
        "error",
    )
    with pytest.raises(UserError, match="loss is not a number at step 3"):
        run(tmp_path / "b", QUICK, steps=torn)


def test_another_recipe_is_refused_and_watching_may_change(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(Recipe(training=QUICK), overwrite=False)
    folder.open(Recipe(name="mended before anything was saved", training=QUICK), overwrite=False)
    folder.open(Recipe(training=QUICK), overwrite=False)
    folder.save_state(1, {}, keep=1)
    folder.open(Recipe(training=QUICK.model_copy(update={"log_every": 7})), overwrite=False)
    with pytest.raises(UserError, match=r"training.batch_size: the run has 8, this recipe has 16"):
        folder.open(Recipe(training=QUICK.model_copy(update={"batch_size": 16})), overwrite=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not a run of smalti"):
        RunFolder(tmp_path / "other").open(Recipe(), overwrite=True)
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_learning_rate_is_a_pure_function_with_the_named_ends():
    config = OptimizerConfig(learning_rate=1.0, warmup=10, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[109] == pytest.approx(0.1, abs=1e-3)
    assert learning_rate(config, 500, 110) == pytest.approx(0.1)


def test_weight_average_equals_its_recurrence_and_copies_buffers():
    module = Regression()
    average = WeightAverage(module, decay=0.5)
    expected = None
    for update in range(1, 30):
        with torch.no_grad():
            module.linear.weight.add_(1.0)
            module.seen += 1
        average.update(module)
        decay = min(0.5, (1 + update) / (10 + update))
        weight = module.linear.weight.detach().clone()
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    torch.testing.assert_close(average.module.linear.weight.detach(), expected)
    assert average.module.seen == module.seen


def test_ranks_that_each_believe_to_be_alone_are_refused(tmp_path):
    """Plain torchrun on a CPU machine, or `accelerate launch --cpu`, would let two processes overwrite each other."""
    code = "from pipelines.base import distributed\nfrom accelerate import PartialState\ndistributed.start()"
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    for name in ("LOCAL_RANK", "ACCELERATE_USE_CPU", "MASTER_ADDR"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True
    )
    assert result.returncode != 0 and "WORLD_SIZE is 2, but accelerate sees 1" in result.stderr


def test_precision_of_the_recipe_is_what_the_phase_sees_run_after_run(tmp_path):
    """A chain may ask for bf16 and then for full precision in one process; weights stay float32 in both."""
    seen = []

    class Watching(Regression):
        def forward(self, batch, step):
            seen.append(self.linear(batch["x"]).dtype)
            return super().forward(batch, step)

    for precision, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        seen.clear()
        config = QUICK.model_copy(update={"precision": precision, "steps": 3})
        folder = RunFolder(tmp_path / precision)
        folder.open(Recipe(training=config), overwrite=False)
        phases = {"toy": Phase(Watching(), OptimizerConfig())}
        train(folder, phases, config, 0, job(3), distributed.start(precision))
        assert set(seen[:3]) == {expected}
        assert final(folder)["toy"]["linear.weight"].dtype == torch.float32


def test_a_tracker_gets_the_figures(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra smalti[tensorboard] is not installed")
    config = QUICK.model_copy(update={"steps": 3, "trackers": ("tensorboard",)})
    folder = RunFolder(tmp_path / "run")
    folder.open(Recipe(training=config), overwrite=False)
    accelerator = distributed.start(trackers=config.trackers, folder=folder.path)
    train(folder, {"toy": Phase(Regression(), OptimizerConfig())}, config, 0, job(3), accelerator)
    assert any(b"train/loss" in path.read_bytes() for path in folder.path.rglob("events.out.tfevents.*"))
