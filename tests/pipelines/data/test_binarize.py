"""Binarised images: exact probabilities; held-out images are drawn once, training images as the recipe says."""

import numpy as np
import pytest
import torch

from pipelines.data import DataConfig, open_images, ordered_batches, training_loader
from pipelines.data import binarize as module
from pipelines.data.binarize import draw_binary
from pipelines.tokens.encoding_spec import source_digest
from tests.pipelines.conftest import read_example

GREY = torch.randint(0, 256, (64, 2, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PLACES = np.arange(64)
METHODS = ("dynamic", "static", "threshold")


def data(method: str | None, size: int = 8, **fields) -> DataConfig:
    binarize = None if method is None else {"method": method, "seed": fields.pop("seed", 0)}
    source = {"kind": "shapes", "train": 20, "validation": 20, "test": 20}
    recipe = {"source": source, "preprocess": {"mode": "L", "size": size}, "binarize": binarize, **fields}
    return DataConfig.model_validate(recipe)


def images(config: DataConfig, split="validation") -> torch.Tensor:
    return open_images(config, split).read_pixels(range(20)).image


def epochs(config: DataConfig, count: int, **where) -> torch.Tensor:
    """The images of some epochs of 20 rows, in the order of training."""
    batches = training_loader(open_images(config, "train"), seed=3, batch_size=4, steps=5 * count, **where)
    return torch.cat([batch["image"] for batch in batches])


def test_a_pixel_is_white_with_the_probability_of_its_intensity(monkeypatch):
    """Over all 65,536 numbers that can decide a pixel, the share of white ones is value / 255."""
    numbers = np.arange(2**16, dtype="<u2").view("<u8").astype(np.uint64)[None]
    monkeypatch.setattr(module, "bits", lambda key, counters, width: numbers.copy())
    for value in range(256):
        white = draw_binary(torch.full((1, 1, 256, 256), value, dtype=torch.uint8), (0,), np.zeros(1, np.int64)) == 255
        assert abs(int(white.sum()) - value / 255 * 2**16) <= 1
        assert value not in (0, 255) or bool((white == (value == 255)).all())


def test_the_draws_of_a_stream_have_these_frequencies():
    values = torch.arange(256, dtype=torch.uint8).expand(4000, 1, 1, 256)
    share = (draw_binary(values, (1, "x"), np.arange(4000)) == 255).double().mean(0).flatten()
    expected = torch.arange(256) / 255
    error = (expected * (1 - expected) / 4000).sqrt()
    assert bool(((share - expected).abs() <= 4.5 * error).all())


def test_each_image_depends_on_its_own_counter():
    whole = draw_binary(GREY, (5,), PLACES)
    halves = [draw_binary(GREY[part], (5,), PLACES[part]) for part in (slice(0, 32), slice(32, 64))]
    assert torch.equal(torch.cat(halves), whole)


def test_pixels_images_and_keys_are_drawn_independently():
    grey = torch.full((64, 1, 16, 16), 128, dtype=torch.uint8)
    first, second = (draw_binary(grey, (key,), PLACES).flatten(1).double() / 255 for key in (0, 1))
    pairs = (first.T, second.T), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1]), (first[:, 4:], first[:, :-4])
    for one, other in pairs:
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.04


def test_the_input_is_left_alone():
    before = GREY.clone()
    assert draw_binary(GREY, (0,), PLACES).unique().tolist() == [0, 255]
    assert torch.equal(GREY, before)


def test_no_images_are_no_images():
    assert draw_binary(GREY[:0], (0,), PLACES[:0]).shape == (0, 2, 5, 7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_rows_are_read_the_same_in_any_batch(method, split):
    dataset = open_images(data(method), split)
    expected = torch.stack([read_example(dataset, row).image for row in range(20)])
    assert set(expected.unique().tolist()) <= {0, 255}
    for size in (1, 7, 20):
        found = torch.cat([batch.image for batch in ordered_batches(dataset, range(20), size)])
        assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_held_out_images_depend_on_the_seed_of_the_data_alone(method):
    assert torch.equal(images(data(method)), images(data("static")))
    assert not torch.equal(images(data(method, seed=1)), images(data(method)))


def test_rows_of_different_splits_are_drawn_from_different_streams(monkeypatch):
    monkeypatch.setattr("pipelines.data.shapes.Shapes.pixels", lambda self, rows: grey.expand(len(rows), 3, 8, 8))
    grey = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    config = data("static", cache_bytes=0, cache_file_bytes=0)
    assert not torch.equal(images(config, "validation"), images(config, "test"))


def test_threshold():
    grey, found = images(data(None)), images(data("threshold"))
    assert torch.equal(found, torch.where(grey > 127, 255, 0).to(torch.uint8))


def test_training_images_are_drawn_anew_each_time():
    found = epochs(data("dynamic", augment={"horizontal_flip": True, "shift": 1}), 3)
    assert set(found.unique().tolist()) == {0, 255}
    assert len({image.numpy().tobytes() for image in found}) == 3 * 20


def test_the_mean_of_a_training_image_over_epochs_is_the_grey_image():
    grey = images(data(None), "train").double()
    config = data("dynamic")
    rows = torch.cat([b["label"] for b in training_loader(open_images(config, "train"), 3, 20, 400)])
    found = epochs(config, 400).double()
    label = int(rows[0])
    labels = open_images(config, "train").read_pixels(range(20)).label
    expected = grey[labels == label].mean(0)
    assert (found[rows == label].mean(0) - expected).abs().max() < 255 * 0.15


def test_static_training_images_are_the_same_in_every_epoch():
    found = {image.numpy().tobytes() for image in epochs(data("static"), 3)}
    assert found == {image.numpy().tobytes() for image in images(data("static"), "train")}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_sees_the_same_images(method):
    assert torch.equal(epochs(data(method), 2, start_step=3), epochs(data(method), 2)[3 * 4 :])


def test_processes_share_the_images_of_one():
    ranks = [epochs(data("dynamic"), 2, rank=rank, world=2).split(2) for rank in range(2)]
    joined = [part for pair in zip(*ranks, strict=True) for part in pair]
    assert torch.equal(torch.cat(joined), epochs(data("dynamic"), 2))


def test_kept_pixels_are_grey():
    """Whatever reads first fills the cache, which all share."""
    reference = {method: images(data(method, cache_bytes=0, cache_file_bytes=0)) for method in (None, *METHODS)}
    kept = [open_images(data(method), "validation") for method in (*METHODS, None)]
    assert len({id(dataset._cache) for dataset in kept}) == 1 and kept[0]._cache is not None
    for _ in range(2):
        for method, dataset in zip((*METHODS, None), kept, strict=True):
            assert torch.equal(dataset.read_pixels(range(20)).image, reference[method])


def test_the_digest_of_the_images_knows_binarisation():
    configs = [data(None), *map(data, METHODS), data("static", seed=1)]
    assert len({source_digest(config, open_images(config, "validation")) for config in configs}) == 5
