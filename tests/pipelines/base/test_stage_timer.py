"""How long stages took, over calls that a signal ended and calls that found them finished."""

import signal

import pytest
from accelerate import Accelerator

from pipelines.base.signals import Interrupted
from pipelines.base.stage_timer import StageTimer


def test_the_time_of_a_stage_is_the_sum_of_its_interrupted_calls(tmp_path, monkeypatch):
    clock = iter([0.0, 20.0, 100.0, 105.0, 200.0, 203.0, 300.0, 301.0])  # calls of 20, 5, 3 and 1 seconds
    monkeypatch.setattr("pipelines.base.stage_timer.time.monotonic", lambda: next(clock))
    for _ in range(2):
        with pytest.raises(Interrupted), StageTimer(tmp_path, Accelerator(), fresh=False)("prior"):
            raise Interrupted(signal.SIGINT)
    for _ in range(2):  # the second call finds the stage finished
        timer = StageTimer(tmp_path, Accelerator(), fresh=False)
        with timer("prior"):
            pass
        assert timer.seconds == {"prior": 28.0}
