import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SCRIPT = """
import torch
from pipelines.base import distributed

distributed.start()
small = torch.full((1 << 20,), 1e-39)
assert torch.get_num_threads() == 2
print(small.mul(0.5).view(torch.int32).count_nonzero().item())
"""


def test_numbers_too_small_for_a_cpu_are_zero_in_every_thread():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    arguments = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
