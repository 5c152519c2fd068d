"""Traversal: one unit moves, the others stay, and the units come in the order of their KL."""

import json

import pytest
import torch
from PIL import Image, ImageSequence

from pipelines.base.errors import UserError
from pipelines.base.image_grids import to_uint8
from pipelines.data import open_images
from pipelines.data.preprocess import Preprocess
from pipelines.evaluate.chosen_images import choose_images
from pipelines.evaluate.latent_window import latent_window
from pipelines.models.checkpoint import load_tokenizer
from pipelines.traverse import TraversalRequest, traversal, traverse
from tests.pipelines.conftest import grey_data

DATA = grey_data(train=8, test=30)


@pytest.fixture
def model(tiny_vae):
    return load_tokenizer(tiny_vae).model


@pytest.fixture
def health(model):
    return latent_window(model, open_images(DATA, "test"), range(30), 16).health


def test_one_unit_moves_and_the_others_stay(model, health):
    start = choose_images(["2"], Preprocess(mode="L", size=16), lambda: open_images(DATA, "test"))
    found = traversal(model, health, start, TraversalRequest(row=2, span=2, steps=5))
    assert found.units == health.kl.argsort(descending=True).tolist()
    assert found.tiles.shape == (5, 5, 1, 16, 16)
    with torch.no_grad():
        z = model.encode(start.image).z
        for place, unit in enumerate(found.units):
            for step, move in enumerate((-2, -1, 0, 1, 2)):
                changed = z.clone()
                changed[0, unit] = health.aggregate_mean[unit] + move * health.aggregate_variance[unit].sqrt()
                expected = to_uint8(model.decode(changed))[0]
                torch.testing.assert_close(found.tiles[place, step], expected, atol=1, rtol=0)


def test_without_a_row_the_middle_is_the_mean_of_all_latents(model, health):
    found = traversal(model, health, None, TraversalRequest(steps=3))
    with torch.no_grad():
        expected = to_uint8(model.decode(health.aggregate_mean.float().view(1, 5, 1, 1)))
    for tiles in found.tiles:
        torch.testing.assert_close(tiles[1:2], expected, atol=1, rtol=0)


def test_named_units_are_sorted_by_their_kl_and_labelled_with_it(model, health):
    found = traversal(model, health, None, TraversalRequest(latents=(0, 3, 1)))
    assert found.units == sorted((0, 1, 3), key=lambda unit: -health.kl[unit].item())
    assert found.labels[0] == f"z{found.units[0]}  KL {health.kl[found.units[0]]:.2f}"
    with pytest.raises(UserError, match="--latents: found 5, expected 0 to 4"):
        traversal(model, health, None, TraversalRequest(latents=(5,)))


def test_it_is_drawn_once(tiny_vae, tmp_path, capsys):
    request = TraversalRequest(row=1, steps=4)
    output = traverse(tiny_vae, DATA, tmp_path / "out", request)
    assert len(json.loads((output / "traversal.json").read_text())["units"]) == 5
    with Image.open(output / "traversal.png") as figure, Image.open(output / "traversal.gif") as animation:
        assert figure.height > figure.width / 2 and len(list(ImageSequence.Iterator(animation))) == 6
    stamp = (output / "traversal.png").stat().st_mtime_ns
    traverse(tiny_vae, DATA, output, request)
    assert (output / "traversal.png").stat().st_mtime_ns == stamp and "already" in capsys.readouterr().err
    with pytest.raises(UserError, match="another request"):
        traverse(tiny_vae, DATA, output, TraversalRequest(row=2, steps=4))


@pytest.mark.parametrize(
    ("bottleneck", "message"),
    [({"kind": "vq", "num_codes": 8, "dim": 4}, "has codes"), ({"kind": "deterministic", "dim": 4}, "is not random")],
)
def test_a_latent_without_a_range_is_refused(make_tokenizer, make_data, tmp_path, bottleneck, message):
    folder = make_tokenizer(tmp_path / "t", bottleneck)
    with pytest.raises(UserError, match=message):
        traverse(folder, make_data(train=8, test=5), tmp_path / "out", TraversalRequest())
