"""What is told before the first step: each mistake has its line, and recipes that ship have none."""

from pathlib import Path

import pytest
import yaml

from pipelines.recipes.advice import advice
from pipelines.recipes.stages import TokenizerRecipe, load_recipe
from pipelines.train import build_task
from tests.pipelines.conftest import grey_data
from tokenizer import Autoencoder

ROOT = Path(__file__).parents[2]
SHIPPED = [
    p for p in sorted((ROOT / "configs").rglob("*.yaml")) if yaml.safe_load(p.read_text()).get("kind") != "pipeline"
]


def recipe_of(objective=None, model=None, steps=100, binarize="threshold"):
    basis = {
        "backbone": {"kind": "mlp", "widths": [4]},
        "bottleneck": {"kind": "gaussian", "dim": 5},
        "likelihood": {"kind": "bernoulli"},
    }
    content = {
        "output": "out",
        "data": grey_data(binarize, train=8, validation=4, test=1).model_dump(mode="json"),
        "model": basis | (model or {}),
        "objective": {"weights": {"nll": 1, "kl": 1}} | (objective or {}),
        "training": {"steps": steps, "batch_size": 4},
    }
    return TokenizerRecipe.model_validate(content)


def advice_on(*arguments, **options):
    recipe = recipe_of(*arguments, **options)
    return advice(recipe, Autoencoder(recipe.model))


def ramp(steps):
    return {"kind": "linear", "start": 0, "end": 1, "steps": steps}


def cycles(start, end):
    """Cycles of which the last ends with the training."""
    return {"kind": "cyclical", "start": start, "end": end, "period": 50}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_recipe_needs_no_advice(path):
    recipe = load_recipe(path)
    if isinstance(recipe, TokenizerRecipe):
        assert advice(recipe, Autoencoder(recipe.model)) == []


@pytest.mark.parametrize(
    ("objective", "model", "words"),
    [
        ({"weights": {"nll": 1, "kl": 1 / 256}}, {}, "about 1 over the 256 numbers of an image"),
        ({"weights": {"nll": 256, "kl": 1}}, {}, "about 1 over the 256 numbers of an image"),
        ({"weights": {"nll": 1, "kl": 17}}, {}, "beta is rarely above 16"),
        ({"weights": {"nll": 1, "kl": cycles(0, 17)}}, {}, "beta is rarely above 16"),
        ({"weights": {"nll": 0.01, "kl": 1}}, {}, "beta is rarely above 16"),
        ({"weights": {"nll": 1, "kl": ramp(101)}}, {}, "ends at step 100 with 0.99 in place of 1"),
        ({}, {"bottleneck": {"kind": "gaussian", "dim": 256}}, "the latent has 256 numbers, the image 256"),
        ({"kl_guard": {"kind": "free_bits", "nats": 4}}, {}, "4 nats for each of 5 are 29 free bits"),
        (
            {"kl_guard": {"kind": "free_bits", "nats": 10, "per": "level"}},
            {"bottleneck": {"kind": "ladder", "dims": [3, 4]}},
            "10 nats for each of 2 are 29 free bits",
        ),
    ],
)
def test_a_mistake_has_its_line(objective, model, words):
    (line,) = advice_on(objective, model)
    assert words in line


@pytest.mark.parametrize(
    ("objective", "model"),
    [
        ({}, {}),
        ({"weights": {"nll": 1, "kl": 16}}, {}),
        ({"weights": {"nll": 1, "kl": 0.02}}, {}),
        ({"weights": {"nll": 1, "kl": 0}}, {}),
        ({"weights": {"nll": 1, "kl": cycles(1e-4, 1)}}, {}),
        ({"weights": {"nll": 1, "kl": ramp(100)}}, {}),
        ({"weights": {"nll": 1, "kl": 1000}, "kl_guard": {"kind": "capacity", "capacity": 3}}, {}),
        ({}, {"bottleneck": {"kind": "gaussian", "dim": 255}}),
        ({"kl_guard": {"kind": "free_bits", "nats": 3}}, {}),
        ({"kl_guard": {"kind": "free_bits", "nats": 15, "per": "level"}}, {}),
        ({"weights": {"nll": 1, "commitment": 0.25}}, {"bottleneck": {"kind": "vq", "num_codes": 8, "dim": 300}}),
    ],
)
def test_what_may_well_be_meant_has_none(objective, model):
    assert advice_on(objective, model) == []


@pytest.mark.parametrize("binarize", ["threshold", "dynamic"])
def test_black_and_white_images_have_a_bernoulli_likelihood(binarize, capsys):
    build_task(recipe_of(binarize=binarize))
    assert "smalti:" not in capsys.readouterr().err


def test_grey_images_under_a_bernoulli_likelihood_are_named_once_and_train(capsys):
    build_task(recipe_of(binarize=None))
    assert capsys.readouterr().err.count("model.likelihood: bernoulli is a probability of 2 values") == 1


def test_only_the_first_process_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    build_task(recipe_of(binarize=None))
    assert capsys.readouterr().err == ""
