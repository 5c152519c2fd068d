"""Train a tokenizer, a prior or a classifier: `smalti train`."""

import os
from collections.abc import Mapping

from pipelines.base.progress import say
from pipelines.base.recipe_files import dump
from pipelines.evaluate.classifier import ClassifierTask
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.evaluate.image_likelihood import pixels_are_known
from pipelines.models.captions import CAPTIONS, read_captions
from pipelines.models.checkpoint import PriorFolder, read_config
from pipelines.recipes.advice import advice
from pipelines.recipes.stages import PriorRecipe, Recipe, TokenizerRecipe
from pipelines.tokens.dataset import TokenDataset
from pipelines.training.image_digests import image_digests
from pipelines.training.prior_task import PriorTask
from pipelines.training.run import train_run
from pipelines.training.run_folder import RunFolder
from pipelines.training.task import TrainingTask
from pipelines.training.tokenizer_task import TokenizerTask, autoencoder
from prior import CaptionTokenizer


def train_recipe(recipe: Recipe, overwrite: bool = False) -> RunFolder:
    """Run a recipe, or continue it; a finished one is left as it is.

    Raises:
        UserError: the output folder holds another run, or the recipe does not fit its data.
    """
    return train_run(recipe, lambda: digests_of_inputs(recipe), lambda: build_task(recipe, overwrite), overwrite)


def build_task(recipe: Recipe, overwrite: bool = False) -> TrainingTask:
    """Opens the data of a recipe and makes its model. `overwrite`: no run is continued."""
    match recipe:
        case TokenizerRecipe():
            card = card_of(recipe, "tokenizer")
            task = TokenizerTask(recipe.data, recipe.model, recipe.objective, recipe.training, recipe.seed, card)
            if os.environ.get("RANK", "0") == "0":
                model = autoencoder({name: optimized.phase.model for name, optimized in task.phases.items()})
                for line in advice(recipe, model, pixels_are_known(model, task.images)):
                    say(f"smalti: {line}")
            return task
        case PriorRecipe():
            card = card_of(recipe, "prior")
            captions = None if overwrite else captions_of_run(recipe)
            options = recipe.conditioning, recipe.transformer, recipe.training
            return PriorTask(recipe.tokens, *options, recipe.seed, card, captions)
        case ClassifierRecipe():
            return ClassifierTask(recipe, card_of(recipe, "classifier"))


def captions_of_run(recipe: PriorRecipe) -> CaptionTokenizer | None:
    """The tokenizer of captions of the run that a recipe continues, which another version of its library might train
    differently; None where there is no such run, or it has published no model yet.
    """
    best = recipe.output / "best"
    if recipe.condition != "caption" or not RunFolder(recipe.output).states() or not (best / CAPTIONS).is_file():
        return None
    return read_captions(best, read_config(best, PriorFolder).captions_sha256)


def digests_of_inputs(recipe: Recipe) -> Mapping[str, str]:
    """What a run is trained from and the recipe only points to; empty where that has been removed since."""
    match recipe:
        case TokenizerRecipe() | ClassifierRecipe():
            return image_digests(recipe.data)
        case PriorRecipe() if recipe.tokens.exists():
            return {"tokens": TokenDataset.open(recipe.tokens).manifest.digest}
        case _:
            return {}


def card_of(recipe: Recipe, kind: str) -> str:
    """The README.md of a model folder."""
    return (
        f"# A {kind} of smalti\n\nTrained by `smalti train` with the recipe below; weights in `model.safetensors`, "
        f"checked against the hash in `config.json`.\n\n```yaml\n{dump(recipe)}```\n"
    )
