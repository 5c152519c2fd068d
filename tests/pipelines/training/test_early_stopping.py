"""A run ends when `patience` validations have brought no gain, at the same step however often it was interrupted."""

import json

import pytest
import torch

from pipelines.base import distributed
from pipelines.training.optimizer import OptimizerConfig
from tests.pipelines.training.toy import QUICK, ToyTask, equal, lines, run, weights

PATIENT = QUICK.model_copy(update={"steps": 40, "validate_every": 2, "patience": 3, "ema_decay": None})


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, figure: None)


class Cut(Exception):
    pass


class Scripted(ToyTask):
    """Its validations give `figures` in turn, by step; `stop` interrupts it before that step."""

    def __init__(self, figures, config=PATIENT, stop=None):
        super().__init__(config, broken=self.interrupt)
        self.figures, self.stop = figures, stop

    def interrupt(self, step, batch):
        if step == self.stop:
            raise Cut
        return batch

    def validate(self, models, collective):
        seen = next(iter(models.values())).get_buffer("seen")
        return {"error": float(self.figures[int(seen) // 24 // 2 - 1])}


FIGURES = [5, 3, 4, 2, 2, 2.5, 2, 1, 0, *[0] * 11]  # 2 comes first at step 8; without a gain from there to step 14


def done(folder):
    return json.loads((folder.path / "done.json").read_text())


def test_the_run_ends_after_so_many_validations_without_a_gain(tmp_path):
    folder = run(tmp_path, Scripted(FIGURES))
    found = done(folder)
    assert (found["steps"], found["best"], found["best_step"]) == (14, {"error": 2.0}, 8)
    assert found["stopped_early"] == "no gain of error in 3 validations since step 8"


def test_best_and_last_are_published_and_everything_is_logged(tmp_path):
    folder = run(tmp_path, Scripted(FIGURES))
    assert weights(folder, "best")["toy"]["seen"] == 8 * 24 and weights(folder)["toy"]["seen"] == 14 * 24
    assert folder.newest_step() == 14
    assert [line["step"] for line in lines(folder, "train")] == [3, 6, 9, 12, 14]
    assert [line["step"] for line in lines(folder, "validation")] == list(range(2, 15, 2))


def test_a_gain_in_time_keeps_it_going(tmp_path):
    folder = run(tmp_path, Scripted([9 - number // 3 for number in range(20)]))
    assert done(folder)["steps"] == 40 and "stopped_early" not in done(folder)


def test_without_patience_no_run_ends_early(tmp_path):
    config = PATIENT.model_copy(update={"patience": None})
    assert done(run(tmp_path, Scripted([1.0] * 20, config)))["steps"] == 40


@pytest.mark.parametrize("stop", [1, 7, 9, 11, 12, 13])
def test_an_interrupted_run_ends_at_the_same_step(tmp_path, stop):
    whole = run(tmp_path / "whole", Scripted(FIGURES))
    with pytest.raises(Cut):
        run(tmp_path / "cut", Scripted(FIGURES, stop=stop))
    resumed = run(tmp_path / "cut", Scripted(FIGURES))
    assert done(resumed) == done(whole)
    assert equal(weights(whole), weights(resumed)) and equal(weights(whole, "best"), weights(resumed, "best"))
    assert lines(resumed, "train") == lines(whole, "train")


def test_a_run_killed_before_it_was_marked_trains_no_further(tmp_path):
    folder = run(tmp_path, Scripted(FIGURES))
    before = done(folder)
    (tmp_path / "done.json").unlink()
    assert done(run(tmp_path, Scripted(FIGURES, stop=14))) == before


def test_the_plain_adam_of_the_papers_can_be_asked_for(tmp_path):
    """A constant rate from the first step, no decay, no clipping, no average: torch's own Adam in the same loop."""
    plain = OptimizerConfig(
        learning_rate=5e-4, betas=(0.9, 0.999), eps=1e-7, warmup=0, min_lr_ratio=1, max_grad_norm=None
    )
    config = PATIENT.model_copy(update={"optimizer": plain, "steps": 10, "patience": None})
    found = weights(run(tmp_path, ToyTask(config)))["toy"]
    task = ToyTask(config)
    phase = task.phases["toy"].phase
    adam = torch.optim.Adam(phase.trained_parameters().values(), lr=5e-4, betas=(0.9, 0.999), eps=1e-7)
    for step, batch in enumerate(task.batches(0, 0, 1)):
        distributed.seed_step(0, step, 0, 0)
        adam.zero_grad()
        phase(batch, step)[0].backward()
        adam.step()
    for name, parameter in phase.model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-5, atol=1e-7)
