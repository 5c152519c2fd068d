"""The recipe of a pipeline: overrides, and mistakes that are told when it is read."""

import pytest

from pipelines.base.errors import UserError
from pipelines.recipes.pipeline import load_pipeline


def test_overrides_reach_into_the_stages(recipe_file):
    recipe = load_pipeline(recipe_file, ["tokenizer.training.steps=9", "output=runs/x"])
    assert recipe.tokenizer.training.steps == 9
    assert [str(p) for p in (recipe.tokenizer.output, recipe.prior.output, recipe.prior.tokens)] == [
        "runs/x/tokenizer",
        "runs/x/prior",
        "runs/x/tokens",
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sample.m=3", r"pipeline\.yaml: sample\.m: unknown key"),
        ("prior.training.steps=many", r"prior\.training\.steps: found 'many'"),
        ("encode.splits=[train]", r"encode\.splits leaves out test, validation"),
        ("evaluate.classifier.width=5000", r"evaluate\.classifier\.width: found 5000"),
        ("output=5", r"output: found 5"),
        ("output=[a]", r"output: found \['a'\]"),
        ("output=true", r"output: found True"),
        ("sample.options.top_p=2", r"sample\.options\.top_p: found 2"),
    ],
)
def test_mistakes_are_named(recipe_file, override, words):
    with pytest.raises(UserError, match=words):
        load_pipeline(recipe_file, [override])


def test_another_kind_of_recipe_is_refused(recipe_file):
    with pytest.raises(UserError, match=r"prior\.yaml: kind: found 'prior', expected 'pipeline'"):
        load_pipeline(recipe_file.parent / "prior.yaml")


def test_guidance_needs_a_null_condition_that_is_trained(recipe_file):
    guided = ["sample.options.guidance_scale=2"]
    load_pipeline(recipe_file, guided)
    with pytest.raises(UserError, match=r"guidance_scale is 2\.0, but prior\.condition_dropout is 0"):
        load_pipeline(recipe_file, [*guided, "prior.condition_dropout=0"])


def test_candidates_need_what_compares_them_with_their_condition(recipe_file):
    chosen = ["sample.candidates.num_candidates=2"]
    load_pipeline(recipe_file, [*chosen, "prior.condition_dropout=0"])
    ratio = [*chosen, "sample.candidates.rerank=likelihood_ratio"]
    load_pipeline(recipe_file, ratio)
    with pytest.raises(
        UserError, match=r"sample\.candidates\.rerank is 'likelihood_ratio', but prior\.condition_dropout is 0"
    ):
        load_pipeline(recipe_file, [*ratio, "prior.condition_dropout=0"])
    with pytest.raises(UserError, match=r"sample\.candidates needs a prior with a condition"):
        load_pipeline(recipe_file, [*chosen, "prior.condition=none"])
