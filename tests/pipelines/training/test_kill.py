"""A run killed with SIGKILL and started again ends with the weights, bit for bit, of a run that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]
TOKENIZER = """
kind: tokenizer
output: {output}
data: {{source: {{kind: shapes, train: 256, validation: 32, test: 32}}, preprocess: {{size: 32}}}}
model:
  backbone: {{kind: conv, widths: [4, 8], residual_blocks: 1, residual_width: 4}}
  bottleneck: {{kind: vq, num_codes: 16, dim: 4, dead_code_threshold: 1.0}}
  likelihood: {{kind: normal, scale: 0.2}}
objective: {{weights: {{nll: 1, commitment: 0.25}}}}
training: {training}
"""
PRIOR = """
kind: prior
output: {output}
tokens: {tokens}
condition: label
transformer: {{dim: 16, depth: 2, heads: 2, head_dim: 8, dropout: 0.1}}
training: {training}
"""
TRAINING = (
    "{steps: 60, batch_size: 8, validate_every: 25, validation_images: 16, save_every: 7, log_every: 1, ema_decay: 0.9}"
)


def command(recipe: Path, processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "pipelines", "train", str(recipe)]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    return [*launcher, "-m", "pipelines", "train", str(recipe)]


def environment() -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(recipe: Path, processes: int) -> subprocess.Popen:
    return subprocess.Popen(
        command(recipe, processes),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(recipe: Path, processes: int) -> None:
    process = start(recipe, processes)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def kill_after(recipe: Path, processes: int, run: Path, lines: int) -> None:
    """SIGKILL to every process of the run once metrics.jsonl has so many lines; a resumed run counts its kept ones."""
    process = start(recipe, processes)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "metrics.jsonl"
        if path.is_file() and path.read_text().count("\n") >= lines:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stage", ["tokenizer", "prior"])
def test_killed_and_rerun_equals_left_alone(stage, processes, tmp_path, tiny_tokens):
    weights = []
    for name in ("alone", "killed"):
        recipe, output = tmp_path / f"{name}.yaml", tmp_path / name
        if stage == "tokenizer":
            recipe.write_text(TOKENIZER.format(output=output, training=TRAINING))
        else:
            recipe.write_text(PRIOR.format(output=output, tokens=tiny_tokens, training=TRAINING))
        if name == "killed":
            kill_after(recipe, processes, output, lines=33)
        finish(recipe, processes)
        weights.append([load_file(output / which / "model.safetensors") for which in ("last", "best")])
    for alone, killed in zip(*weights, strict=True):
        assert alone.keys() == killed.keys()
        assert all(torch.equal(alone[key], killed[key]) for key in alone)
