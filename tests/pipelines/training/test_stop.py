"""A run ends only after the first process has written what the message names, however long that takes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.base.signals import Interrupted
from tests.pipelines.training.toy import QUICK, ToyTask, run

ROOT = Path(__file__).parents[3]
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import torch
from pipelines import cli
from pipelines.base import distributed
from pipelines.training import run_folder
from tests.pipelines.training.toy import QUICK, ToyTask, run

def slowly(function):
    def write(*arguments):
        time.sleep(1.5)
        function(*arguments)
    return write

def body(**_):
    rank = distributed.start().process_index
    torch.save, run_folder.write_json = slowly(torch.save), slowly(run_folder.write_json)
    steps = 5 if sys.argv[2] == "late signal" else 300
    config = QUICK.model_copy(update={"steps": steps, "log_every": 30, "save_every": 300, "validate_every": 300})

    def broken(step, batch):
        time.sleep(0.05)
        if step == 3 and rank == 1 and sys.argv[2] == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if step == 3 and sys.argv[2] == "nan":
            batch["y"] *= float("nan")
        return batch

    class Task(ToyTask):
        def validate(self, models, collective):
            if rank == 1 and sys.argv[2] == "late signal":
                os.kill(os.getpid(), signal.SIGTERM)
            return super().validate(models, collective)

    run(Path(sys.argv[1]), Task(config, broken=broken))
    print("the next command", file=sys.stderr)

cli.app = body
cli.main()
"""


def errors_of_two_processes(tmp_path, cause):
    """What both print to stderr when `cause` ends them."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    result = subprocess.run(
        [*launcher, script, tmp_path / "run", cause],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return result.stderr


@pytest.mark.slow
def test_the_state_that_a_signal_leaves_is_complete(tmp_path):
    errors = errors_of_two_processes(tmp_path, "signal")
    (state,) = (tmp_path / "run" / "state").glob("step-*.pt")
    assert f"the state of step {int(state.stem[5:])} is saved" in errors


@pytest.mark.slow
def test_a_numeric_failure_is_noted_in_the_folder(tmp_path):
    errors = errors_of_two_processes(tmp_path, "nan")
    assert "is not a finite number at step 4" in errors
    assert (tmp_path / "run" / "failure.json").is_file()


@pytest.mark.slow
def test_a_signal_to_one_process_in_the_last_validation_ends_all(tmp_path):
    errors = errors_of_two_processes(tmp_path, "late signal")
    assert "the run is complete" in errors and "the next command" not in errors
    assert (tmp_path / "run" / "done.json").is_file()


def test_a_signal_before_the_first_step_claims_no_state(tmp_path):
    def stopped(step, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return batch

    with pytest.raises(Interrupted, match="there is no state yet"):
        run(tmp_path, ToyTask(broken=stopped))
    assert not list(tmp_path.glob("state/*"))


@pytest.mark.parametrize("moment", ["save_figures", "publish"])
def test_a_signal_in_the_last_validation_or_afterwards_ends_the_command_too(tmp_path, monkeypatch, moment):
    """Training is complete, but a chain of commands must not go on with its next one."""
    task = ToyTask(QUICK.model_copy(update={"validate_every": 20}))
    monkeypatch.setattr(task, moment, lambda *arguments: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="the run is complete") as interrupted:
        run(tmp_path, task)
    assert interrupted.value.exit_code == 130
    assert (tmp_path / "done.json").is_file()
