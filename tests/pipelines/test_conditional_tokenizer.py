"""A tokenizer that takes labels: they go with their images through training, figures, folders and commands."""

import json
from typing import Any

import pytest
import torch

from pipelines.base import distributed
from pipelines.base.errors import UserError
from pipelines.data import open_images
from pipelines.inspect import inspect_model
from pipelines.models.checkpoint import load_tokenizer
from pipelines.recipes.stages import load_recipe
from pipelines.reconstruct import ReconstructionRequest, reconstruct
from pipelines.training.collective import Collective
from pipelines.training.tokenizer_task import TokenizerTask, posterior_stream
from tests.pipelines.conftest import shapes_data
from tests.pipelines.training.toy import QUICK
from tokenizer import AutoencoderConfig, ObjectiveConfig, evaluate, psnr

MODEL: dict[str, Any] = {
    "image_size": 32,
    "channels": 3,
    "backbone": {"kind": "mlp", "widths": (8,)},
    "condition": {"kind": "film", "num_classes": 24, "dim": 4},
    "bottleneck": {"kind": "gaussian", "dim": 2},
    "likelihood": {"kind": "normal"},
}
OBJECTIVE = ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 1}})
DATA = shapes_data(train=24, validation=12, test=12)


def task_of(**changes: Any) -> TokenizerTask:
    torch.manual_seed(0)
    return TokenizerTask(DATA, AutoencoderConfig.model_validate(MODEL | changes), OBJECTIVE, QUICK, seed=0)


@pytest.fixture
def task() -> TokenizerTask:
    return task_of()


def models_of(task: TokenizerTask) -> dict[str, Any]:
    return {name: optimized.phase.model.eval() for name, optimized in task.phases.items()}


def test_a_batch_of_training_moves_the_embeddings_of_its_labels_only(task):
    batch = next(task.batches(0, 0, 1))
    phase: Any = task.phases["tokenizer"].phase
    phase(batch, 0)[0].backward()
    touched = phase.model.condition.embedding.weight.grad.abs().sum(1) > 0
    assert set(touched.nonzero()[:, 0].tolist()) == set(batch["label"].tolist())


def test_validation_knows_the_labels_of_held_out_images(task):
    models, batch = models_of(task), open_images(DATA, "validation").read_batch(range(12))
    model = models["tokenizer"]
    with torch.no_grad():
        found = task.validate(models, Collective(distributed.start()))
        expected = model.reconstruct(batch.image, batch.label)
    assert found["psnr"] == pytest.approx(psnr(expected, batch.image).mean().item(), abs=1e-4)
    assert not torch.allclose(expected, model.reconstruct(batch.image))


def test_the_figures_of_a_run_show_held_out_labels_and_every_class_in_turn(task, tmp_path, monkeypatch):
    grids: dict[str, Any] = {}
    monkeypatch.setattr(
        "pipelines.training.tokenizer_task.save_grid",
        lambda path, images, columns, captions=None: grids.update({path.name.split("-")[0]: (images, captions)}),
    )
    models = models_of(task)
    with torch.no_grad():
        task.save_figures(models, tmp_path, 1)
    batch, model = open_images(DATA, "validation").read_batch(range(8)), models["tokenizer"]
    shown = torch.stack(list(grids["reconstructions"][0][8:16]))
    torch.testing.assert_close(shown, model.reconstruct(batch.image, batch.label))
    images, captions = grids["samples"]
    assert task.classes is not None and captions == [task.classes[i % len(task.classes)] for i in range(32)]
    labels = torch.arange(32) % len(task.classes)
    torch.testing.assert_close(images, model.sample(32, torch.Generator().manual_seed(0), labels))


def test_a_published_folder_names_the_labels(task, tmp_path):
    models = models_of(task)
    task.publish(models, tmp_path / "model")
    loaded = load_tokenizer(tmp_path / "model")
    names = open_images(DATA, "train").classes
    assert names and loaded.classes == tuple(names)
    x, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 5])
    assert torch.equal(loaded.model.reconstruct(x, labels), models["tokenizer"].reconstruct(x, labels))
    assert ("condition", f"film, 24 labels: {', '.join(names)}") in inspect_model(tmp_path / "model").facts


def test_a_folder_whose_names_are_not_as_many_as_its_labels_is_refused(task, tmp_path):
    task.publish(models_of(task), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"classes": ["one", "two"]}))
    with pytest.raises(UserError, match="classes: found 2, but the network knows 24 labels"):
        load_tokenizer(tmp_path / "model")


def test_reconstructing_hands_the_labels_over(task, tmp_path):
    models = models_of(task)
    task.publish(models, tmp_path / "model")
    found = reconstruct(tmp_path / "model", DATA, tmp_path / "out", ReconstructionRequest(batch_size=5))
    batch = open_images(DATA, "test").read_batch(range(12))
    with torch.no_grad():
        rebuilt = models["tokenizer"].reconstruct(batch.image, batch.label).clamp(0, 1)
        streams = [posterior_stream(0, row.key) for row in batch.metadata]
        bound = evaluate(models["tokenizer"], batch.image, OBJECTIVE, 0, streams, batch.label).figures["negative_elbo"]
    assert found.psnr == pytest.approx(psnr(rebuilt, batch.image / 255).mean().item(), abs=1e-3)
    assert found.negative_elbo == pytest.approx(bound.mean().item(), rel=1e-5)


def test_data_with_other_classes_is_not_reconstructed(task, tmp_path):
    task.publish(models_of(task), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"classes": content["classes"][::-1]}))
    with pytest.raises(UserError, match=r"data: the classes are .* was trained with the labels"):
        reconstruct(tmp_path / "model", DATA, tmp_path / "out")


def test_data_with_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match=r"model.condition.num_classes: found 3, but the data has 24 classes"):
        task_of(condition={"kind": "film", "num_classes": 3})


RECIPE = """
kind: tokenizer
output: runs/conditional
data:
  source: {kind: shapes}
  preprocess: {size: 32, mode: RGB}
model:
  backbone: {kind: conv}
  condition: {kind: film, num_classes: 24}
  bottleneck: {kind: BOTTLENECK}
  likelihood: {kind: normal}
objective:
  weights: {nll: 1, kl: 1}
training: {steps: 2, batch_size: 8}
"""


def test_a_discrete_tokenizer_takes_no_condition(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("BOTTLENECK", "gaussian"))
    load_recipe(path)
    path.write_text(RECIPE.replace("BOTTLENECK", "vq"))
    with pytest.raises(UserError, match=r"condition: found .film.* vq bottleneck .*`condition: label`"):
        load_recipe(path)
