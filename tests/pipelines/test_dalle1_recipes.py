"""The recipes of configs/dalle1 build the networks that their headers name; no memory is needed for their weights."""

from pathlib import Path

import pytest
import torch

from pipelines.recipes.pipeline import load_pipeline
from pipelines.recipes.stages import TokenizerRecipe, load_recipe
from pipelines.training.prior_task import build_config
from prior import TokenPrior
from tokenizer import Autoencoder

DALLE1 = Path(__file__).parents[2] / "configs" / "dalle1"
TOKENIZERS = {
    "dvae.yaml": (256, 32, 8192, 97_616_006),
    "dvae_emoji.yaml": (32, 8, 256, 216_374),
    "emoji_gpu.yaml": (64, 16, 1024, 5_668_998),
}
PRIORS = {"emoji_pipeline.yaml": (84, 1_141_376), "emoji_gpu.yaml": (288, 156_132_352)}


def tokenizer_of(name: str) -> TokenizerRecipe:
    found = load_pipeline(DALLE1 / name).tokenizer if name in PRIORS else load_recipe(DALLE1 / name)
    assert isinstance(found, TokenizerRecipe)
    return found


def built(recipe: TokenizerRecipe) -> Autoencoder:
    with torch.device("meta"):
        return Autoencoder(recipe.model)


def size_of(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_recipe_is_built_here():
    standing_alone = {path.name for path in DALLE1.glob("*.yaml")} - {"emoji_prior.yaml"}
    assert standing_alone == TOKENIZERS.keys() | PRIORS.keys()


@pytest.mark.parametrize(("name", "expected"), TOKENIZERS.items())
def test_a_tokenizer_has_this_grid_and_this_many_weights(name, expected):
    recipe = tokenizer_of(name)
    model = built(recipe)
    assert recipe.objective.weights.keys() == {"nll", "kl"}
    assert (model.config.image_size, model.grid[0], model.num_codes, size_of(model)) == expected


@pytest.mark.parametrize(("name", "expected"), PRIORS.items())
def test_a_prior_has_this_many_positions_and_weights(name, expected):
    recipe = load_pipeline(DALLE1 / name)
    stage, grids = recipe.prior, built(recipe.tokenizer).code_grids
    assert stage.caption is not None
    words = stage.caption.vocab_size
    config = build_config(grids, None, words, stage.conditioning, stage.transformer, stage.training)
    with torch.device("meta"):
        model = TokenPrior(config)
    assert (config.vocabulary.length, size_of(model)) == expected


def test_the_pipeline_trains_the_recipe_that_stands_alone():
    alone, chained = tokenizer_of("dvae_emoji.yaml"), tokenizer_of("emoji_pipeline.yaml")
    assert alone.model_copy(update={"output": chained.output}) == chained
