"""Train a tokenizer, a prior or a classifier: `smalti train`."""

import os
from collections.abc import Mapping

from pipelines.base.progress import say
from pipelines.base.recipe_files import dump
from pipelines.evaluate.classifier import ClassifierTask
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.evaluate.image_likelihood import pixels_are_known
from pipelines.recipes.advice import advice
from pipelines.recipes.stages import PriorRecipe, Recipe, TokenizerRecipe
from pipelines.tokens.dataset import TokenDataset
from pipelines.training.image_digests import image_digests
from pipelines.training.prior_task import Conditioning, PriorTask
from pipelines.training.run import train_run
from pipelines.training.run_folder import RunFolder
from pipelines.training.task import TrainingTask
from pipelines.training.tokenizer_task import TokenizerTask, autoencoder


def train_recipe(recipe: Recipe, overwrite: bool = False) -> RunFolder:
    """Run a recipe, or continue it; a finished one is left as it is.

    Raises:
        UserError: the output folder holds another run, or the recipe does not fit its data.
    """
    return train_run(recipe, lambda: digests_of_inputs(recipe), lambda: build_task(recipe), overwrite)


def build_task(recipe: Recipe) -> TrainingTask:
    """Opens the data of a recipe and makes its model."""
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
            conditioning = Conditioning(recipe.condition, recipe.condition_dropout)
            return PriorTask(recipe.tokens, conditioning, recipe.transformer, recipe.training, recipe.seed, card)
        case ClassifierRecipe():
            return ClassifierTask(recipe, card_of(recipe, "classifier"))


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
