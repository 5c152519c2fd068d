"""Training on relaxed codes: noise and temperature are functions of the step, and the gap to single codes is logged."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipelines.recipes.stages import TokenizerRecipe
from pipelines.train import train_recipe
from tests.pipelines.training.cut_runs import Cut, cut


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, figure: None)


def recipe(output) -> TokenizerRecipe:
    return TokenizerRecipe.model_validate(
        {
            "kind": "tokenizer",
            "output": output,
            "data": {"source": {"kind": "shapes", "train": 64, "validation": 8, "test": 8}, "preprocess": {"size": 16}},
            "model": {
                "backbone": {"kind": "dvae", "width": 4, "groups": 2, "blocks_per_group": 1},
                "bottleneck": {
                    "kind": "gumbel",
                    "num_codes": 16,
                    "dim": 8,
                    "temperature": {"kind": "cosine", "start": 1, "end": 0.25, "steps": 8},
                },
                "likelihood": {"kind": "logit_laplace"},
            },
            "objective": {"weights": {"nll": 1, "kl": {"kind": "cosine", "start": 0, "end": 6.6, "steps": 4}}},
            "training": {"steps": 9, "batch_size": 8, "validate_every": 3, "save_every": 2, "log_every": 1},
        }
    )


def test_a_cut_run_ends_with_the_bits_of_a_whole_one(tmp_path, monkeypatch):
    whole = train_recipe(recipe(tmp_path / "whole"))
    cut(monkeypatch, 5)
    with pytest.raises(Cut):
        train_recipe(recipe(tmp_path / "cut"))
    resumed = train_recipe(recipe(tmp_path / "cut"))
    for which in ("best", "last"):
        one, other = (load_file(folder.path / which / "model.safetensors") for folder in (whole, resumed))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert one["bottleneck.temperature"].item() == pytest.approx(0.25)


def test_validation_logs_the_gap_and_the_use_of_codes(tmp_path):
    folder = train_recipe(recipe(tmp_path / "run"))
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if line["split"] == "validation"]
    assert len(validations) == 3
    for line in validations:
        assert line["relaxation_gap"] == pytest.approx(line["nll"] - line["nll_relaxed"], abs=1e-3)
        assert {"psnr", "psnr_relaxed", "kl", "usage", "perplexity"} <= line.keys()
    assert {"nll", "kl", "perplexity_batch"} <= next(line for line in lines if line["split"] == "train").keys()
