"""An error on any process is one message and one exit code on all, soon, whatever the others wait for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAD = """
import sys, time, torch
from datetime import timedelta
from accelerate import Accelerator, InitProcessGroupKwargs
from pipelines import cli
from pipelines.base import distributed
from pipelines.base.errors import UserError
from pipelines.base.first_process import first_process
from pipelines.base.signals import stop_requests

def body():
    Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds={timeout}))])
    accelerator = distributed.start()
    rank = accelerator.process_index
    {body}

cli.app = lambda **_: body()
cli.main()
"""
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")


def launch(tmp_path, body, timeout=600):
    """Two processes that run `body`; a collective gives up after `timeout` seconds."""
    script = tmp_path / "script.py"
    script.write_text(HEAD.format(body=body.strip().replace("\n", "\n    "), timeout=timeout))
    command = [*LAUNCHER, "--log-dir", tmp_path / "log", "--redirects", "3", script]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outputs(tmp_path, name="stderr"):
    return [path.read_text() for path in sorted(tmp_path.glob(f"log/*/*/[0-9]/{name}.log"))]


def said(tmp_path):
    return [line for text in outputs(tmp_path) for line in text.splitlines() if line.startswith("smalti: ")]


FAILURES = {
    "rank 1, while rank 0 is in a collective": (
        "if rank == 1: raise UserError('a bad image')\naccelerator.wait_for_everyone()",
        "smalti: a bad image",
    ),
    "rank 0, before the others' turn": (
        "with first_process(accelerator):\n    raise UserError('no such data')",
        "smalti: no such data",
    ),
    "rank 1, in its turn, while rank 0 is in a collective": (
        "with first_process(accelerator):\n"
        "    if rank == 1: raise UserError('not here')\n"
        "accelerator.wait_for_everyone()",
        "smalti: not here",
    ),
    "both at once": ("raise UserError('both')", "smalti: both"),
    "a full disk on rank 1": (
        "if rank == 1: raise OSError(28, 'x', 'a.png')\naccelerator.wait_for_everyone()",
        "smalti: a.png: no space is left on the device",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILURES)
def test_one_message_and_exit_code_2_on_all(tmp_path, name):
    body, message = FAILURES[name]
    process = launch(tmp_path, body)
    _, summary = process.communicate(timeout=60)
    assert said(tmp_path) == [message]
    assert "Traceback" not in "".join(outputs(tmp_path))
    assert summary.count("exitcode  : 2") == 2 or summary.count("exitcode: 2") >= 1, summary


@pytest.mark.slow
def test_a_defect_on_one_process_ends_the_other(tmp_path):
    process = launch(tmp_path, "if rank == 1: raise KeyError('defect')\naccelerator.wait_for_everyone()")
    process.communicate(timeout=60)
    assert sum("KeyError" in text for text in outputs(tmp_path)) == 1


PATIENCE = """
if rank == 1: time.sleep(3)
print(distributed.gather([rank], accelerator), flush=True)
"""


@pytest.mark.slow
def test_gathering_waits_longer_than_a_collective_would(tmp_path):
    process = launch(tmp_path, PATIENCE, timeout=1)
    process.communicate(timeout=60)
    assert outputs(tmp_path, "stdout") == ["[0, 1]\n"] * 2, outputs(tmp_path)


STOP = """
done = 0
try:
    with stop_requests(accelerator) as stop:
        for step in range(10**6):
            if step == 3: print("running", flush=True)
            if stop.before(step):
                raise stop.interrupted(f"step {step} is saved")
            accelerator.reduce(torch.ones(1))
            time.sleep(0.001 * (1 + rank))
            done = step + 1
finally:
    print("done", done, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_to_one_process_stops_all_before_the_same_step(tmp_path, which):
    process = launch(tmp_path, "print('pid', __import__('os').getpid(), flush=True)\n" + STOP)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum("running" in text for text in outputs(tmp_path, "stdout")) < 2:
        time.sleep(0.05)
    pids = [int(text.split()[1]) for text in outputs(tmp_path, "stdout")]
    os.kill(pids[which], signal.SIGTERM)
    process.communicate(timeout=60)
    ends = {text.splitlines()[-1] for text in outputs(tmp_path, "stdout")}
    assert len(ends) == 1 and ends.pop().startswith("done ")
    assert len(said(tmp_path)) == (2 if which == 0 else 1)  # the request itself is answered by rank 0
    assert "terminated" in said(tmp_path)[-1] and "is saved" in said(tmp_path)[-1]
