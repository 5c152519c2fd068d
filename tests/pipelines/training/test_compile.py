"""A compiled training run: `training.compile`. In a process of its own, since shape checks cannot be traced."""

import json
import math
import os
import subprocess
import sys

import pytest
import yaml

RECIPE = {
    "kind": "tokenizer",
    "output": "run",
    "data": {
        "source": {"kind": "shapes", "train": 32, "validation": 8, "test": 8},
        "preprocess": {"size": 16, "mode": "RGB"},
    },
    "model": {
        "backbone": {"kind": "conv", "widths": [8, 8], "residual_blocks": 1, "residual_width": 8},
        "bottleneck": {"kind": "vq", "num_codes": 16, "dim": 8, "dead_code_threshold": 0.5, "restart_every": 2},
        "likelihood": {"kind": "normal"},
    },
    "objective": {"weights": {"nll": 1, "commitment": 0.25}},
    "training": {"steps": 3, "batch_size": 8, "validate_every": 2, "validation_images": 8, "compile": True},
}


@pytest.mark.slow
def test_a_compiled_run_is_trained_to_its_end(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    places = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines", "train", "recipe.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **places}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cache").is_dir()  # it was compiled indeed
    summary = json.loads((tmp_path / "run" / "done.json").read_text())
    assert summary["steps"] == 3 and math.isfinite(summary["validation"]["loss"])
