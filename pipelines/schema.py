"""The JSON schema of a recipe, for editors that complete and check YAML: `smalti schema`."""

import json

from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.recipes.pipeline import PipelineRecipe
from pipelines.recipes.stages import PriorRecipe, TokenizerRecipe

RECIPES = {
    "tokenizer": TokenizerRecipe,
    "prior": PriorRecipe,
    "classifier": ClassifierRecipe,
    "pipeline": PipelineRecipe,
}


def schema(kind: str) -> str:
    """The schema of a kind of recipe (a key of `RECIPES`), as JSON."""
    return json.dumps(RECIPES[kind].model_json_schema(), indent=2)
