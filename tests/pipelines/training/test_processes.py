"""Several processes on a CPU (gloo): exact resuming, gradients, validation. The checks are in several_processes.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CHECKS = 5


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_checks_hold_between_processes(processes, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    result = subprocess.run(
        [*launcher, "-m", "tests.pipelines.training.several_processes", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.count("passed: ") == CHECKS


def test_ranks_that_each_believe_to_be_alone_are_refused():
    """Plain torchrun on a CPU machine, or `accelerate launch --cpu`, would let two processes overwrite each other."""
    code = "from pipelines.base import distributed\nfrom accelerate import PartialState\ndistributed.start()"
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    for name in ("LOCAL_RANK", "ACCELERATE_USE_CPU", "MASTER_ADDR"):
        environment.pop(name, None)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode != 0 and "WORLD_SIZE is 2, but accelerate sees 1" in result.stderr
