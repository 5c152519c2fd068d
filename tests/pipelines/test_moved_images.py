"""A folder of images that has moved, or is fetched in another way, is the same data; one other picture is not."""

import shutil

import numpy as np
import pytest
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data import DataConfig
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.recipes.stages import TokenizerRecipe
from pipelines.reconstruct import reconstruct
from pipelines.train import train_recipe
from tests.pipelines.conftest import BACKBONE

TRAINING = {"steps": 2, "batch_size": 4, "validate_every": 2, "save_every": 1, "validation_images": 4}


@pytest.fixture
def photos(tmp_path):
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        for seed in range(count):
            path = tmp_path / "photos" / split / "ab"[seed % 2] / f"{seed}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def data_of(tmp_path):
    def data_of(folder, cache_bytes=0, **arguments):
        arguments = {"cache_dir": str(tmp_path / "cache"), **arguments}
        source = {"kind": "huggingface", "path": str(folder), "arguments": arguments}
        content = {"source": source, "preprocess": {"size": 32}, "cache_bytes": cache_bytes}
        return DataConfig.model_validate(content)

    return data_of


def tokenizer_recipe(tmp_path, data):
    model = {
        "backbone": BACKBONE,
        "bottleneck": {"kind": "vq", "num_codes": 8, "dim": 4},
        "likelihood": {"kind": "normal"},
    }
    content = {"output": tmp_path / "run", "data": data.model_dump(), "model": model, "training": TRAINING}
    return TokenizerRecipe.model_validate(content | {"objective": {"weights": {"nll": 1, "commitment": 0.25}}})


def replaced_picture(folder):
    """One picture of each split is another one."""
    for split in ("train", "validation", "test"):
        Image.new("RGB", (32, 32), "red").save(folder / split / "a" / "0.bmp")


def test_a_tokenizer_is_continued_from_images_that_have_moved(photos, data_of, tmp_path):
    folder = train_recipe(tokenizer_recipe(tmp_path, data_of(photos)))
    (folder.path / "done.json").unlink()
    (folder.path / "state" / "step-00000002.pt").unlink()
    moved = photos.rename(tmp_path / "moved")
    train_recipe(tokenizer_recipe(tmp_path, data_of(moved, token="hf_new")))
    assert folder.finished
    replaced_picture(moved)
    with pytest.raises(UserError, match="train images: the run was trained from"):
        train_recipe(tokenizer_recipe(tmp_path, data_of(moved)))


def test_a_run_whose_images_cannot_be_compared_is_refused_by_their_path(photos, data_of, tmp_path):
    train_recipe(tokenizer_recipe(tmp_path, data_of(photos)))
    with pytest.raises(UserError, match=r"data\.source\.path: the run has"):
        train_recipe(tokenizer_recipe(tmp_path, data_of(tmp_path / "nowhere")))


def test_a_classifier_is_finished_wherever_its_images_lie(photos, data_of, tmp_path):
    def recipe(data):
        content = {"output": tmp_path / "run", "data": data.model_dump(), "width": 4, "training": TRAINING}
        return ClassifierRecipe.model_validate(content)

    done = train_recipe(recipe(data_of(photos))).path / "done.json"
    stamp = done.stat().st_mtime_ns
    train_recipe(recipe(data_of(photos.rename(tmp_path / "moved"))))
    assert done.stat().st_mtime_ns == stamp


def test_reconstructions_are_finished_wherever_and_however_their_images_are_read(
    photos, data_of, tiny_tokenizer, tmp_path
):
    figure = tmp_path / "out" / "reconstructions.png"
    found = reconstruct(tiny_tokenizer, data_of(photos), tmp_path / "out")
    stamp = figure.stat().st_mtime_ns
    moved = shutil.move(photos, tmp_path / "moved")
    assert reconstruct(tiny_tokenizer, data_of(moved, 2**20, token="hf_new"), tmp_path / "out") == found
    assert figure.stat().st_mtime_ns == stamp
    replaced_picture(moved)
    with pytest.raises(UserError, match="holds figures of another"):
        reconstruct(tiny_tokenizer, data_of(moved), tmp_path / "out")
