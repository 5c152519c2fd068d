"""Properties of the loop, on phases so small that each can be checked to the last bit."""

import json

import pytest
import torch
from torch import nn

from pipelines.base import distributed
from pipelines.base.errors import UserError
from pipelines.training.collective import Collective
from pipelines.training.loop import TrainingLoop
from pipelines.training.optimizer import OptimizerConfig
from pipelines.training.run_folder import RunFolder
from pipelines.training.task import OptimizedPhase
from tests.pipelines.training.toy import QUICK, Network, Recipe, Regression, ToyTask, equal, lines, run, weights


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing them takes longer than the training here; test_metrics_log.py draws some."""
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, figure: None)


class Cut(Exception):
    pass


def cut_at(stop):
    def broken(step, batch):
        if step == stop:
            raise Cut
        return batch

    return broken


def stopped_and_resumed(path, config, stop):
    with pytest.raises(Cut):
        run(path, ToyTask(config, broken=cut_at(stop)))
    return run(path, ToyTask(config))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop", [1, 4, 5, 11, 19])
def test_resumed_equals_uninterrupted(tmp_path, stop, precision):
    config = QUICK.model_copy(update={"precision": precision, "gradient_accumulation_steps": 1 + stop % 2})
    whole = run(tmp_path / "whole", ToyTask(config))
    resumed = stopped_and_resumed(tmp_path / "cut", config, stop)
    assert equal(weights(whole), weights(resumed)) and equal(weights(whole, "best"), weights(resumed, "best"))


def test_the_metrics_of_a_resumed_run_are_those_of_an_uninterrupted_one(tmp_path):
    whole, resumed = run(tmp_path / "whole"), stopped_and_resumed(tmp_path / "cut", QUICK, 11)
    for split, steps in (("train", [3, 6, 9, 12, 15, 18, 20]), ("validation", [5, 10, 15, 20])):
        assert [line["step"] for line in lines(whole, split)] == steps
        assert lines(resumed, split) == lines(whole, split)


def test_logged_metrics_are_means_over_the_steps_since_the_last_line(tmp_path):
    losses = []

    class Counting(Regression):
        def forward(self, batch, step):
            loss, _ = super().forward(batch, step)
            losses.append(loss.item())
            return loss, {"step_squared": torch.tensor(float(step * step))}

    folder = run(tmp_path / "run", ToyTask(QUICK, {"toy": Counting()}))
    found = lines(folder, "train")
    assert found[1]["step_squared"] == pytest.approx((9 + 16 + 25) / 3)
    assert found[-1]["loss"] == pytest.approx((losses[18] + losses[19]) / 2)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_make_the_same_step_as_one(tmp_path, parts):
    results, norms = [], []
    for count in (1, parts):
        gentle = OptimizerConfig(learning_rate=1e-3)  # Adam multiplies differences in the last bit
        config = QUICK.model_copy(update={"gradient_accumulation_steps": count, "optimizer": gentle})
        torch.manual_seed(0)
        phases = {"toy": Regression(Network(dropout=0.0))}
        folder = run(tmp_path / str(count), ToyTask(config, phases))
        results.append(weights(folder)["toy"])
        norms.append(lines(folder, "train")[0]["gradient_norm"])  # neither clipping nor Adam shows its scale
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert results[1]["seen"] == 20 * 24  # after_step was called once a step


def test_only_what_a_phase_names_is_trained(tmp_path):
    """The optimizer, the clipping and the average leave a partner's model alone, though gradients reach it."""

    class Half(Regression):
        def __init__(self, partner):
            super().__init__()
            self.partner = partner

        def forward(self, batch, step):
            loss, metrics = super().forward(batch, step)
            return loss + 1e3 * self.partner(batch["x"]).square().mean(), metrics

    torch.manual_seed(0)
    partner = Network()
    before = {name: value.clone() for name, value in partner.state_dict().items()}
    alone = run(tmp_path / "alone", ToyTask(QUICK, {"toy": Regression(Network(dropout=0.0))}))
    torch.manual_seed(3)
    task = ToyTask(QUICK, {"toy": Half(partner)})
    with_partner = run(tmp_path / "half", task)
    assert all(torch.equal(value, before[name]) for name, value in partner.state_dict().items())
    clipped = [line["gradient_norm"] for line in lines(with_partner, "train")]
    assert max(clipped) < 100 and alone.finished  # the partner's gradients are in the thousands


def test_a_later_phase_finds_what_an_earlier_one_left_in_the_batch(tmp_path):
    """A generator and a critic, with two parts each: the critic sees the generator's output of the same part."""
    turns = []

    class Generator(Regression):
        def forward(self, batch, step):
            turns.append(("generator", step, batch["x"][0, 0].item()))
            batch["fake"] = self.model(batch["x"]).detach()
            loss, metrics = super().forward(batch, step)
            return loss, {"score": metrics["error"]}

    class Critic(Regression):
        def __init__(self, generator):
            super().__init__()
            self.generator = generator

        def forward(self, batch, step):
            turns.append(("critic", step, batch["x"][0, 0].item()))
            assert batch["fake"].shape == batch["y"].shape and not batch["fake"].requires_grad
            loss = (self.model(batch["x"]) - batch["fake"]).square().mean()
            return loss, {"gap": loss.detach()}

    generator = Generator(Network(dropout=0.0))
    config = QUICK.model_copy(update={"steps": 3, "gradient_accumulation_steps": 2, "log_every": 1})
    folder = run(tmp_path / "two", ToyTask(config, {"generator": generator, "critic": Critic(generator.model)}))
    assert [(name, step) for name, step, _ in turns] == [
        (name, step) for step in range(3) for name in ("generator", "generator", "critic", "critic")
    ]
    assert all(turns[i][2] == turns[i + 2][2] for i in (0, 1, 4, 5, 8, 9))
    assert {"generator/score", "generator/loss", "critic/gap", "critic/loss"} <= lines(folder, "train")[0].keys()


def test_the_average_of_a_phase_does_not_freeze_its_partner(tmp_path):
    """What is published for a critic is the critic's average alone: it holds no stale copy of the generator."""

    class Critic(Regression):
        def __init__(self, generator):
            super().__init__()
            self.generator = generator

    generator = Regression()
    task = ToyTask(QUICK, {"generator": generator, "critic": Critic(generator.model)})
    folder = RunFolder(tmp_path)
    loop = TrainingLoop(task, QUICK, 0, folder, distributed.start())
    assert {type(trainer.published) for trainer in loop.trainers.values()} == {Network}


def test_best_is_the_lowest_validation_and_the_newest_states_are_kept(tmp_path):
    figures = iter([3.0, 1.0, 2.0, 4.0])
    config = QUICK.model_copy(update={"ema_decay": None})
    task = ToyTask(config)
    task.validate = lambda models, collective: {"error": next(figures)}
    folder = run(tmp_path / "run", task)
    assert weights(folder, "best")["toy"]["seen"] == 10 * 24 and weights(folder)["toy"]["seen"] == 20 * 24
    assert [state.name for state in folder.states()] == ["step-00000016.pt", "step-00000020.pt"]
    assert json.loads((folder.path / "done.json").read_text())["best"] == {"error": 1.0}


def test_a_validation_leaves_training_as_it_was(tmp_path):
    often = QUICK.model_copy(update={"validate_every": 1, "ema_decay": None})
    once = QUICK.model_copy(update={"validate_every": 20, "ema_decay": None})
    assert equal(weights(run(tmp_path / "a", ToyTask(often))), weights(run(tmp_path / "b", ToyTask(once))))


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"training.batch_size: found 24, expected a multiple .* 1 x 7"):
        run(tmp_path, ToyTask(QUICK.model_copy(update={"gradient_accumulation_steps": 7})))


def test_the_precision_of_the_recipe_is_what_the_phase_computes_in_run_after_run(tmp_path):
    """A chain may ask for bf16 and then for fp32 in one process; weights stay float32 in both."""
    seen = []

    class Watching(Regression):
        def forward(self, batch, step):
            seen.append(self.model.get_submodule("layers.0")(batch["x"]).dtype)
            return super().forward(batch, step)

    for precision, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        seen.clear()
        config = QUICK.model_copy(update={"precision": precision, "steps": 3})
        folder = run(tmp_path / precision, ToyTask(config, {"toy": Watching()}))
        assert set(seen) == {expected}
        assert weights(folder)["toy"]["layers.0.weight"].dtype == torch.float32


def test_no_step_asks_for_a_number_of_the_device(tmp_path, monkeypatch):
    """Between two logs nothing waits for the device: no item(), no tolist(), no bool of a tensor."""
    asked = []
    for name in ("item", "tolist", "__bool__", "__float__", "cpu"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, _name=name, _original=original, **k: (asked.append(_name), _original(self, *a, **k))[1],
        )
    config = QUICK.model_copy(update={"log_every": 50, "save_every": 50, "validate_every": 50})
    folder = RunFolder(tmp_path)
    accelerator = distributed.start()
    with folder.begin(Recipe(), {}, False, accelerator):
        loop = TrainingLoop(ToyTask(config), config, 0, folder, accelerator)
        batches = loop.task.batches(0, 0, 1)
        loop.train_mode()
        asked.clear()
        for _ in range(5):
            loop.update(next(iter(batches)))
    assert asked == []


def test_a_parameter_without_a_gradient_has_gradient_zero():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    used.sum().backward()
    Collective(distributed.start()).average_gradients([used, unused])
    assert torch.equal(unused.grad, torch.zeros(3)) and torch.equal(used.grad, torch.ones(2))


def test_a_state_does_not_stay_in_memory(tmp_path):
    """What was loaded to resume is let go: the loop holds no second copy of weights and averages."""
    import gc
    import weakref

    stopped = ToyTask(QUICK, broken=cut_at(9))
    with pytest.raises(Cut):
        run(tmp_path, stopped)
    kept = []
    load = RunFolder.load_state

    def watched(self, step, mapped=False):
        state = load(self, step, mapped)
        kept.extend(weakref.ref(value) for value in state["phases"]["toy"]["phase"].values())
        return state

    RunFolder.load_state = watched
    try:
        loop = TrainingLoop(ToyTask(), QUICK, 0, RunFolder(tmp_path), distributed.start())
        loop.resume()
    finally:
        RunFolder.load_state = load
    gc.collect()
    assert kept and all(reference() is None for reference in kept) and loop.step == 8


def test_phases_may_have_optimizers_of_their_own(tmp_path):
    slow, fast = Regression(), Regression()
    before = {name: value.clone() for name, value in slow.model.state_dict().items()}
    task = ToyTask(QUICK)
    task.phases = {
        "fast": OptimizedPhase(fast, QUICK.optimizer),
        "slow": OptimizedPhase(slow, OptimizerConfig(learning_rate=1e-9)),
    }
    run(tmp_path, task)
    moved = (slow.model.get_parameter("layers.0.weight") - before["layers.0.weight"]).abs().max().item()
    assert moved < 1e-6
