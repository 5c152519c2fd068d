"""Recipes whose latents are regularized, and those that train a discriminator as a second phase."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.base.errors import UserError
from pipelines.base.recipe_files import validate
from pipelines.models.checkpoint import load_tokenizer
from pipelines.recipes.stages import TokenizerRecipe
from pipelines.train import build_task, train_recipe
from pipelines.training.latent_regularizers import DISCRIMINATOR_OPTIMIZER
from pipelines.training.tokenizer_task import TokenizerTask
from tests.pipelines.training.cut_runs import Cut, cut
from tests.tokenizer.members import examples, small
from tokenizer.regularizers import LatentDiscriminatorConfig

KINDS: dict[str, Any] = {
    name: small(config) for name, config in examples(LatentDiscriminatorConfig).items() if " " not in name
}
CONTENT = {
    "data": {"source": {"kind": "shapes", "train": 64, "validation": 8, "test": 8}, "preprocess": {"size": 16}},
    "model": {
        "backbone": {"kind": "conv", "widths": [4, 8], "residual_blocks": 0, "dense_widths": [8]},
        "bottleneck": {"kind": "gaussian", "dim": 3},
        "likelihood": {"kind": "bernoulli"},
    },
    "training": {
        "steps": 9,
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "validate_every": 4,
        "validation_images": 8,
        "save_every": 2,
        "log_every": 1,
    },
}
FACTOR = {"weights": {"nll": 1, "kl": 1, "total_correlation": 5}, "discriminator": {"kind": "factor", "widths": [8]}}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr("pipelines.training.loop.draw_curves", lambda metrics, figure: None)
    monkeypatch.setattr(TokenizerTask, "save_figures", lambda *arguments: None)


def recipe(output: Path, objective: dict[str, Any], **training) -> TokenizerRecipe:
    content = CONTENT | {"output": output, "objective": objective, "training": CONTENT["training"] | training}
    return validate(TokenizerRecipe, content, Path("recipe.yaml"))


def objective_with(config: Any) -> dict[str, Any]:
    return {"weights": {"nll": 1, "kl": 1, config.term: 2}, "discriminator": config.model_dump()}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("step", [5, 8])
def test_two_phases_resume_to_the_last_bit(name, step, tmp_path, monkeypatch):
    objective = objective_with(KINDS[name])
    whole = train_recipe(recipe(tmp_path / "whole", objective))
    cut(monkeypatch, step)
    with pytest.raises(Cut):
        train_recipe(recipe(tmp_path / "cut", objective))
    resumed = train_recipe(recipe(tmp_path / "cut", objective))
    states = [folder.load_state(9, mapped=False)["phases"] for folder in (whole, resumed)]
    assert states[0].keys() == {"tokenizer", "discriminator"}
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    for which in ("best", "last"):
        one, other = (load_file(folder.path / which / "model.safetensors") for folder in (whole, resumed))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", KINDS)
def test_both_phases_learn_and_the_tokenizer_alone_is_published(name, tmp_path):
    wanted = recipe(tmp_path / "run", objective_with(KINDS[name]))
    torch.manual_seed(wanted.seed)
    before = {phase: dict(each.phase.model.state_dict()) for phase, each in build_task(wanted).phases.items()}
    folder = train_recipe(wanted)
    after = folder.load_state(9, mapped=False)["phases"]
    for phase, state in before.items():
        assert all(not torch.equal(value, after[phase]["phase"][f"model.{key}"]) for key, value in state.items())
    published = load_tokenizer(folder.path / "last").model
    assert published.state_dict().keys() == before["tokenizer"].keys()
    logged = json.loads((folder.path / "metrics.jsonl").read_text().splitlines()[0])
    assert {f"tokenizer/{KINDS[name].term}", "tokenizer/loss", "discriminator/loss"} <= logged.keys()


def test_the_weights_of_the_discriminator_stand_once_in_a_state(tmp_path):
    """Both phases hold the network."""
    folder = train_recipe(recipe(tmp_path / "run", FACTOR, steps=2))
    phases = folder.load_state(2, mapped=False)["phases"]
    one = phases["tokenizer"]["phase"]["discriminator.layers.0.weight"]
    assert one.data_ptr() == phases["discriminator"]["phase"]["model.layers.0.weight"].data_ptr()


def test_the_discriminator_has_an_optimizer_of_its_own():
    own = {"learning_rate": 0.25, "betas": [0.1, 0.2]}
    for chosen, expected in (({}, DISCRIMINATOR_OPTIMIZER), ({"discriminator_optimizer": own}, None)):
        wanted = recipe(Path("unused"), FACTOR, **chosen)
        phases = build_task(wanted).phases
        assert phases["tokenizer"].optimizer == wanted.training.optimizer
        assert phases["discriminator"].optimizer == (expected or wanted.training.discriminator_optimizer)


def test_an_optimizer_without_a_discriminator_is_refused():
    with pytest.raises(UserError, match=r"discriminator_optimizer needs objective\.discriminator"):
        recipe(Path("unused"), {"weights": {"nll": 1, "kl": 1}}, discriminator_optimizer={"learning_rate": 0.1})


@pytest.mark.parametrize(
    ("regularizer", "training", "message"),
    [
        ({"kind": "mmd"}, {"batch_size": 2}, r"objective\.regularizers: mmd: found 1 image.*training\.batch_size"),
        (
            {"kind": "total_correlation", "dataset_size": 3},
            {},
            r"total_correlation: dataset_size: found 3, expected at least the 4 images of a batch",
        ),
        ({"kind": "mmd"}, {"batch_size": 2**21}, r"mmd of 1,048,576 images at once .*GiB of memory"),
    ],
)
def test_a_batch_that_a_regularizer_cannot_take_is_refused_before_training(regularizer, training, message):
    objective = {"weights": {"nll": 1, "kl": 1, regularizer["kind"]: 1}, "regularizers": [regularizer]}
    with pytest.raises(UserError, match=message):
        build_task(recipe(Path("unused"), objective, **training))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"weights": {"nll": 1, "kl": 1}, "discriminator": {"kind": "factor"}}, r"objective\.weights: found"),
        (
            FACTOR | {"discriminator": {"kind": "factor", "widths": [10**9, 10**9]}},
            r"model: training it.*memory",
        ),
    ],
)
def test_what_a_discriminator_cannot_have_is_refused_before_training(objective, message):
    with pytest.raises(UserError, match=message):
        build_task(recipe(Path("unused"), objective))


def test_regularizers_train_through_a_recipe_and_are_no_part_of_validation(tmp_path):
    objective = {
        "weights": {"nll": 1, "kl": 1, "total_correlation": 3, "mmd": 10},
        "regularizers": [{"kind": "total_correlation", "dataset_size": 64}, {"kind": "mmd", "kernel": "rbf"}],
    }
    folder = train_recipe(recipe(tmp_path / "run", objective, steps=2))
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    trained = next(line for line in lines if line["split"] == "train")
    assert all(math.isfinite(trained[name]) for name in ("total_correlation", "mmd", "mutual_information"))
    validated = next(line for line in lines if line["split"] == "validation")
    assert not {"total_correlation", "mmd"} & validated.keys()


MMD = {"weights": {"nll": 1, "kl": 0, "mmd": 100}, "regularizers": [{"kind": "mmd"}]}


@pytest.mark.parametrize("objective", [MMD, FACTOR])
def test_with_terms_that_validation_does_not_see_the_latest_weights_are_the_best(objective, tmp_path, monkeypatch):
    losses = iter([1.0, 2.0, 3.0])
    figures = TokenizerTask.validate
    monkeypatch.setattr(TokenizerTask, "validate", lambda *given: figures(*given) | {"loss": next(losses)})
    folder = train_recipe(recipe(tmp_path, objective))
    assert json.loads((folder.path / "done.json").read_text())["best_step"] == 9
    best, last = (load_file(folder.path / which / "model.safetensors") for which in ("best", "last"))
    torch.testing.assert_close(best, last, rtol=0, atol=0)


@pytest.mark.parametrize("objective", [MMD, FACTOR])
def test_patience_is_refused_where_validation_does_not_see_a_term(objective, tmp_path):
    with pytest.raises(UserError, match=r"training\.patience: found 2, .*(mmd|total_correlation).*expected null"):
        build_task(recipe(tmp_path, objective, patience=2))


def test_a_term_that_does_not_count_leaves_patience_and_the_best_as_they_are(tmp_path):
    task = build_task(recipe(tmp_path, MMD | {"weights": {"nll": 1, "kl": 1, "mmd": 0}}, patience=2))
    assert not task.best_is_latest
