"""A loss or a weight that is no finite number: nothing of it is kept, and the advice works on the same folder."""

import json

import pytest
import torch

from pipelines.base import distributed
from pipelines.base.errors import UserError
from pipelines.training.collective import Collective
from pipelines.training.step_metrics import StepMetrics
from tests.pipelines.training.toy import QUICK, Recipe, Regression, ToyTask, lines, run


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, figure: None)


def spoiled_at(number, value=float("nan")):
    return lambda step, batch: batch | {"y": batch["y"] * value} if step == number else batch


def saved_numbers(folder):
    for path in [*folder.glob("state/*.pt"), *folder.glob("*/weights.pt")]:
        state = torch.load(path, weights_only=True)
        models = [part["phase"] for part in state["phases"].values()] if "phases" in state else state.values()
        yield from (tensor for model in models for tensor in model.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("every", [(50, 1, 50), (50, 50, 1), (1, 50, 50), (50, 4, 6)])
def test_nothing_broken_is_kept_and_step_and_terms_are_named(tmp_path, every, value):
    """Also where states or validations come more often than logs."""
    log, save, validate = every
    update = {"log_every": log, "save_every": save, "validate_every": validate, "keep_states": 9}
    config = QUICK.model_copy(update=update)
    with pytest.raises(UserError, match=r"loss is not a finite number at step 8 \(.*error (nan|inf)"):
        run(tmp_path, ToyTask(config, broken=spoiled_at(7, value)))
    assert all(tensor.isfinite().all() for tensor in saved_numbers(tmp_path))
    assert max((int(path.stem[5:]) for path in tmp_path.glob("state/*.pt")), default=0) < 8
    assert json.loads((tmp_path / "failure.json").read_text())["step"] == 8


def test_a_gradient_that_breaks_the_weights_is_found_before_they_are_saved(tmp_path):
    """The loss is finite, its gradient is not: sqrt at 0."""

    class Root(Regression):
        def forward(self, batch, step):
            loss, metrics = super().forward(batch, step)
            return (loss + (loss - loss).sqrt() if step == 5 else loss), metrics

    config = QUICK.model_copy(update={"save_every": 1, "log_every": 50})
    with pytest.raises(UserError, match="a weight is not a finite number at step 6"):
        run(tmp_path, ToyTask(config, {"toy": Root()}))
    assert all(tensor.isfinite().all() for tensor in saved_numbers(tmp_path))


def test_the_advice_can_be_followed_on_the_same_folder(tmp_path):
    """With a lower learning rate the run continues from its last good state, and keeps a record of the change."""
    wild = QUICK.model_copy(update={"optimizer": QUICK.optimizer.model_copy(update={"learning_rate": 0.1})})
    tame = QUICK.model_copy(update={"optimizer": QUICK.optimizer.model_copy(update={"learning_rate": 1e-3})})
    with pytest.raises(UserError) as error:
        run(tmp_path, ToyTask(wild, broken=spoiled_at(9)))
    assert "lower training.optimizer.learning_rate or training.optimizer.max_grad_norm" in str(error.value)
    assert "continues from the state of step 8" in str(error.value)
    folder = run(tmp_path, ToyTask(tame))
    assert folder.finished and folder.failure is None
    (change,) = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert change == {"step": 8, "key": "training.optimizer.learning_rate", "from": 0.1, "to": 1e-3}


def test_without_a_failure_the_learning_rate_may_not_change(tmp_path):
    def cut(step, batch):
        if step == 9:
            raise KeyError
        return batch

    with pytest.raises(KeyError):
        run(tmp_path, ToyTask(broken=cut))
    other = QUICK.model_copy(update={"optimizer": QUICK.optimizer.model_copy(update={"learning_rate": 1e-3})})
    with pytest.raises(UserError, match=r"training.optimizer.learning_rate: the run has 0.05, this recipe has 0.001"):
        run(tmp_path, ToyTask(other))


def test_a_failure_that_was_overcome_frees_no_key(tmp_path):
    """Once a newer state is saved, options are fixed again."""
    with pytest.raises(UserError, match="step 7"):
        run(tmp_path, ToyTask(broken=spoiled_at(6)))
    slower = QUICK.model_copy(update={"optimizer": QUICK.optimizer.model_copy(update={"learning_rate": 1e-3})})

    def cut(step, batch):
        if step == 14:
            raise KeyError
        return batch

    with pytest.raises(KeyError):
        run(tmp_path, ToyTask(slower, broken=cut))
    with pytest.raises(UserError, match=r"learning_rate: the run has 0.001, this recipe has 0.05"):
        run(tmp_path, ToyTask(QUICK))


def test_after_a_validation_that_is_not_finite_the_advice_can_be_followed(tmp_path):
    task = ToyTask()
    task.validate = lambda models, collective: {"error": float("nan"), "other": 2.0}
    with pytest.raises(UserError, match=r"error of the validation is not a finite number at step 5 .*state of step 4"):
        run(tmp_path, task)
    assert not (tmp_path / "best").exists()
    tame = QUICK.model_copy(update={"optimizer": QUICK.optimizer.model_copy(update={"learning_rate": 1e-3})})
    assert run(tmp_path, ToyTask(tame)).finished


def test_an_infinite_figure_that_nobody_monitors_is_null_in_the_files(tmp_path):
    task = ToyTask()
    task.validate = lambda models, collective: {"error": 1.0, "ratio": float("inf")}
    folder = run(tmp_path, task)
    assert [line["ratio"] for line in lines(folder, "validation")] == [None] * 4
    assert json.loads((tmp_path / "done.json").read_text())["validation"] == {"error": 1.0, "ratio": None}


def test_a_step_that_the_gradient_scaler_skips_is_not_in_the_mean_of_gradient_norms():
    metrics = StepMetrics(Collective(distributed.start()))
    for step, norm in enumerate((1.0, float("inf"), float("nan"), 3.0)):
        metrics.add(step, {"gradient_norm": torch.tensor(norm), "loss": torch.tensor(step / 1)})
    assert metrics.means() == {"gradient_norm": 2.0, "loss": 1.5}


def test_another_option_is_refused_even_after_a_failure(tmp_path):
    with pytest.raises(UserError):
        run(tmp_path, ToyTask(broken=spoiled_at(6)))
    with pytest.raises(UserError, match="name: the run has 'toy', this recipe has 'another'"):
        run(tmp_path, ToyTask(), Recipe(name="another"))
