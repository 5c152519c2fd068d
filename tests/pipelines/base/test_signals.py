"""Ctrl-C and SIGTERM: at once outside of training, after the step inside of it, and with a word in either case."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.base import signals
from pipelines.base.signals import SIGNALS, Interrupted, stop_requests

ROOT = Path(__file__).parents[3]
CODE = """
import time
from pipelines import cli

def body(**_):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

cli.app = body
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_command_ends_at_once_with_a_word_and_its_code(number, code, word):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == code and out == "cleaned up\n"
    assert errors.startswith(f"smalti: {word}") and "same command continues" in errors and "Traceback" not in errors


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_a_later_one_raises(number, monkeypatch):
    before, survived = signal.getsignal(number), []
    with pytest.raises(Interrupted) as stop, stop_requests() as request:
        assert not request.requested and not request.before(0)
        os.kill(os.getpid(), number)
        assert request.requested and request.before(1)
        assert request.interrupted("saved").exit_code == 128 + number
        os.kill(os.getpid(), number)  # passed on by a launcher: the same request
        survived.append(number)
        monkeypatch.setattr(signals, "SECONDS_OF_ONE_REQUEST", 0.0)
        os.kill(os.getpid(), number)
    assert survived == [number]
    assert stop.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


def test_a_forked_worker_leaves_the_end_to_its_parent():
    with stop_requests() as request:
        if (pid := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(request.requested)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert not request.requested
