"""A run that is killed or interrupted, and started again, ends with the weights of a run that was left alone."""

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
training: {{{training}}}
"""
FACTOR_VAE = """
kind: tokenizer
output: {output}
data: {{source: {{kind: shapes, train: 256, validation: 32, test: 32}}, preprocess: {{size: 16}}}}
model:
  backbone: {{kind: conv, widths: [4, 8], residual_blocks: 0, dense_widths: [8]}}
  bottleneck: {{kind: gaussian, dim: 3}}
  likelihood: {{kind: bernoulli}}
objective:
  weights: {{nll: 1, kl: 1, total_correlation: 5}}
  discriminator: {{kind: factor, widths: [16, 16]}}
training: {{{training}}}
"""
PRIOR = """
kind: prior
output: {output}
tokens: {tokens}
condition: label
transformer: {{dim: 16, depth: 2, heads: 2, head_dim: 8, dropout: 0.1}}
training: {{{training}}}
"""
CAPTION_PRIOR = PRIOR.replace(
    "condition: label", "condition: caption\ncaption: {{vocab_size: 300, max_length: 16, bpe_dropout: 0.3}}"
)
TRAINING = (
    "steps: 60, batch_size: 24, validate_every: 30, validation_images: 16, save_every: 7, log_every: 1, ema_decay: 0.9"
)
VARIANTS = [
    ("tokenizer", 1, "precision: bf16, gradient_accumulation_steps: 3"),
    ("prior", 1, "gradient_accumulation_steps: 2"),
    ("tokenizer", 2, "gradient_accumulation_steps: 2"),
    ("prior", 3, "precision: bf16"),
    ("caption_prior", 1, "gradient_accumulation_steps: 2"),
    ("caption_prior", 2, "precision: bf16"),
    ("tokenizer", 3, "precision: fp32"),
    ("tokenizer", 4, "precision: bf16"),
    ("factor_vae", 2, "precision: bf16, gradient_accumulation_steps: 2"),
]


def start(recipe: Path, processes: int) -> subprocess.Popen:
    alone = [sys.executable, "-m", "pipelines", "train", str(recipe)]
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    return subprocess.Popen(
        alone if processes == 1 else [*launcher, *alone[1:]],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(recipe: Path, processes: int) -> None:
    process = start(recipe, processes)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def wait_for_lines(process: subprocess.Popen, run: Path, lines: int) -> None:
    """Until metrics.jsonl has so many lines; a resumed run counts its kept ones."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "metrics.jsonl"
        if path.is_file() and path.read_text().count("\n") >= lines:
            break
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be stopped"


def written(tmp_path: Path, name: str, stage: str, tokens: Path, extra: str) -> tuple[Path, Path]:
    recipe, output = tmp_path / f"{name}.yaml", tmp_path / name
    training = f"{TRAINING}, {extra}" if extra else TRAINING
    texts = {"tokenizer": TOKENIZER, "factor_vae": FACTOR_VAE, "prior": PRIOR, "caption_prior": CAPTION_PRIOR}
    text = texts[stage]
    recipe.write_text(text.format(output=output, tokens=tokens, training=training))
    return recipe, output


def assert_same_weights(one: Path, other: Path) -> None:
    for which in ("last", "best"):
        a, b = (load_file(run / which / "model.safetensors") for run in (one, other))
        assert a.keys() == b.keys()
        differing = [name for name in a if not torch.equal(a[name], b[name])]
        assert not differing


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "processes", "extra"), VARIANTS)
def test_killed_and_rerun_equals_left_alone(stage, processes, extra, tmp_path, tiny_tokens):
    recipe, alone = written(tmp_path, "alone", stage, tiny_tokens, extra)
    finish(recipe, processes)
    recipe, killed = written(tmp_path, "killed", stage, tiny_tokens, extra)
    process = start(recipe, processes)
    wait_for_lines(process, killed, lines=17)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(recipe, processes)
    assert_same_weights(alone, killed)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_says_so_and_the_rerun_equals_left_alone(number, code, tmp_path, tiny_tokens):
    recipe, alone = written(tmp_path, "alone", "prior", tiny_tokens, "")
    finish(recipe, 1)
    recipe, stopped = written(tmp_path, "stopped", "prior", tiny_tokens, "")
    process = start(recipe, 1)
    wait_for_lines(process, stopped, lines=17)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors and "is saved" in errors and "The same command continues" in errors
    newest = sorted((stopped / "state").glob("step-*.pt"))[-1]
    assert f"the state of step {int(newest.stem[5:])} is saved" in errors
    finish(recipe, 1)
    assert_same_weights(alone, stopped)


@pytest.mark.slow
def test_ctrl_c_under_a_launcher_saves_the_state_too(tmp_path, tiny_tokens):
    recipe, alone = written(tmp_path, "alone", "prior", tiny_tokens, "")
    finish(recipe, 2)
    recipe, stopped = written(tmp_path, "stopped", "prior", tiny_tokens, "")
    process = start(recipe, 2)
    wait_for_lines(process, stopped, lines=17)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "is saved" in errors and process.returncode != 0
    finish(recipe, 2)
    assert_same_weights(alone, stopped)
