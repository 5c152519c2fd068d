"""The classifier: it learns, it is reproducible, and a damaged folder is refused."""

import json
import shutil

import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data import DataConfig, PixelBatch, Unreadable, open_images
from pipelines.data.dataset import ImageDataset
from pipelines.evaluate.classifier import ClassifierTask, load_classifier
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.inspect import inspect
from pipelines.train import train_recipe
from pipelines.training.config import TrainingConfig

TRAINING = TrainingConfig.model_validate(
    {
        "steps": 60,
        "batch_size": 32,
        "optimizer": {"learning_rate": 1e-2, "warmup": 5},
        "ema_decay": None,
        "validate_every": 60,
        "validation_images": 64,
    }
)


@pytest.fixture(scope="module")
def recipe(make_data, tmp_path_factory):
    data = make_data(train=1000, validation=64, test=128)
    output = tmp_path_factory.mktemp("classifier") / "run"
    return ClassifierRecipe(output=output, data=data, width=8, training=TRAINING)


@pytest.fixture(scope="module")
def folder(recipe):
    return train_recipe(recipe).path


def test_it_learns_what_real_images_show(folder, recipe):
    classifier = load_classifier(folder)
    batch = open_images(recipe.data, "test").read_batch(range(128))
    accuracy = (classifier(batch.image) == batch.label).float().mean().item()
    assert accuracy > 5 / len(classifier.classes)


def test_batches_of_images_are_classified_as_one(folder, recipe):
    classifier = load_classifier(folder)
    images = open_images(recipe.data, "test").read_batch(range(7)).image
    assert torch.equal(classifier(images, batch_size=3), classifier(images))


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(folder, recipe, tmp_path):
    short = recipe.model_copy(update={"training": TRAINING.model_copy(update={"steps": 3})})
    folders = [
        train_recipe(short.model_copy(update={"output": tmp_path / name, "seed": seed})).path
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    a, b, c = (json.loads((path / "last" / "config.json").read_text()) for path in folders)
    assert a == b
    assert a["weights_sha256"] != c["weights_sha256"] and a["recipe_sha256"] != c["recipe_sha256"]
    assert (a["seed"], c["seed"]) == (0, 1)


def test_a_finished_classifier_is_left_alone(folder, recipe):
    stamp = (folder / "done.json").stat().st_mtime_ns
    train_recipe(recipe)
    assert (folder / "done.json").stat().st_mtime_ns == stamp


def test_broken_images_where_validation_reads_are_refused_before_training(recipe, monkeypatch):
    def broken(self, rows, keep=True):
        return PixelBatch(
            torch.empty(0, 3, 32, 32, dtype=torch.uint8), None, [(0, Unreadable(f"row {rows[0]}", "torn"))]
        )

    monkeypatch.setattr(ImageDataset, "read_pixels", broken)
    with pytest.raises(UserError, match=r"none of the first 64 validation images can be read.*row 0: torn"):
        ClassifierTask(recipe)


def test_foreign_weights_are_refused(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / "best" / name).read_bytes())
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "smalti-classifier/2"}, "found format 'smalti-classifier/2', expected 'smalti-classifier/1'"),
        ({"weights_sha256": "0" * 64}, "corrupted, or from another model"),
        ({"model": {"channels": 3, "num_classes": 10**9, "width": 8}}, r"model\.num_classes: found 1000000000"),
        ({"model": {"channels": 3, "num_classes": 3, "width": 8}}, r"does not fit config\.json"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_allocated(folder, tmp_path, change, words):
    shutil.copy(folder / "best" / "model.safetensors", tmp_path)
    config = json.loads((folder / "best" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=words):
        load_classifier(tmp_path)


def test_images_too_small_for_the_network_are_refused(recipe):
    data = recipe.data.model_copy(update={"preprocess": recipe.data.preprocess.model_copy(update={"size": 7})})
    with pytest.raises(UserError, match=r"data\.preprocess\.size: found 7, .* at least 8 pixels"):
        ClassifierTask(recipe.model_copy(update={"data": data}))


def test_its_folder_says_what_it_is(folder):
    assert "kind: classifier" in (folder / "best" / "README.md").read_text()
    found = inspect(folder)
    assert found.kind == "run of a classifier" and "finished" in dict(found.facts)["state"]
    assert dict(inspect(folder / "best").facts).items() <= dict(found.facts).items()
    assert dict(found.facts)["images"] == "32 x 32 RGB, crop center"
    assert dict(found.facts)["classes"].startswith("24: red circle")


def test_data_without_classes_is_refused(recipe, tmp_path):
    for number in range(20):
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(path)
    source = {"kind": "huggingface", "path": "imagefolder", "arguments": {"data_dir": str(tmp_path / "photos")}}
    data = DataConfig.model_validate({"source": source, "preprocess": recipe.data.preprocess})
    with pytest.raises(UserError, match="expected at least two to train a classifier on"):
        train_recipe(recipe.model_copy(update={"output": tmp_path / "never", "data": data}))
