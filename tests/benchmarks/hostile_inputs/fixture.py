"""The small finished pipeline that every case gets a copy of."""

import os
from pathlib import Path

from tests.benchmarks.hostile_inputs.process import start

TOKENIZER = """
kind: tokenizer
output: out
data: {source: {kind: shapes, train: 64, validation: 16, test: 16}, preprocess: {size: 32}}
model:
  backbone: {kind: conv, widths: [4, 8], residual_blocks: 1, residual_width: 4}
  bottleneck: {kind: vq, num_codes: 16, dim: 4}
  likelihood: {kind: normal, scale: 0.2}
objective: {weights: {nll: 1, commitment: 0.25}}
training: {steps: 4, batch_size: 8, validate_every: 4, save_every: 4}
"""
PRIOR = """
kind: prior
output: out
tokens: tokens
condition: label
transformer: {dim: 16, depth: 1, heads: 1, head_dim: 16}
training: {steps: 4, batch_size: 8, validate_every: 4, save_every: 4}
"""
PIPELINE = """
kind: pipeline
output: done
tokenizer: tokenizer.yaml
prior: prior.yaml
sample: {num_images: 4}
"""
FILES = {
    "tokenizer.yaml": TOKENIZER,
    "prior.yaml": PRIOR,
    "pipeline.yaml": PIPELINE,
    "images/a.txt": "no image",
}
COMMANDS = (["run", "pipeline.yaml"], ["decode", "done/tokens", "-o", "done/decoded"])


def write(path: str | Path, content: str | bytes) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def make_fixture(folder: Path) -> None:
    """Write the recipes and run them. Raises SystemExit if that fails: nothing could be learned from the cases then."""
    (folder / "empty").mkdir(parents=True)
    for name, content in FILES.items():
        write(folder / name, content)
    errors = folder.parent / "errors"
    for arguments in COMMANDS:
        _, status = os.waitpid(start(arguments, folder, errors), 0)
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"the sound pipeline fails: {arguments}\n{errors.read_text()}")
