"""Traversal: one unit moves, the others stay, and the units come in the order of their KL."""

import json

import pytest
import torch
from PIL import Image, ImageSequence

import pipelines.traverse as command
from pipelines.base.errors import UserError
from pipelines.base.image_grids import to_uint8
from pipelines.data import open_images
from pipelines.data.preprocess import Preprocess
from pipelines.evaluate.chosen_images import choose_images
from pipelines.evaluate.latent_window import latent_window
from pipelines.models.checkpoint import load_tokenizer
from pipelines.traverse import TraversalRequest, traversal, traverse
from tests.pipelines.conftest import grey_data, write_conditional_vae

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


def test_what_cannot_be_traversed_is_refused_before_an_image_is_encoded(
    tiny_vae, tmp_path, make_tokenizer, monkeypatch
):
    monkeypatch.setattr(command, "latent_window", None)
    with pytest.raises(UserError, match="--latents: found 5, expected 0 to 4"):
        traverse(tiny_vae, DATA, tmp_path / "out", TraversalRequest(latents=(1, 5)))
    with pytest.raises(UserError, match="row 30: the split has 30 images"):
        traverse(tiny_vae, DATA, tmp_path / "out", TraversalRequest(row=30))
    codes = make_tokenizer(tmp_path / "t", {"kind": "vq", "num_codes": 8, "dim": 4})
    with pytest.raises(UserError, match="has codes"):
        traverse(codes, DATA, tmp_path / "out", TraversalRequest())


def test_a_latent_that_is_not_random_moves_within_the_range_of_its_images(make_tokenizer, make_data, tmp_path):
    folder = make_tokenizer(tmp_path / "t", {"kind": "deterministic", "dim": 4})
    output = traverse(folder, make_data(train=8, test=5), tmp_path / "out", TraversalRequest(steps=3, row=0))
    values = torch.tensor(json.loads((output / "traversal.json").read_text())["values"])
    assert (values.diff(dim=1) > 0).all()


def test_a_model_that_needs_labels_begins_at_an_image(tmp_path):
    classes = tuple(open_images(DATA, "test").classes or ())
    needs = write_conditional_vae(tmp_path / "needs", classes)
    learned = write_conditional_vae(tmp_path / "learned", classes, dropout=0.1)
    for folder in (needs, learned):
        traverse(folder, DATA, tmp_path / f"{folder.name}_row", TraversalRequest(row=0, steps=3))
    traverse(learned, DATA, tmp_path / "none", TraversalRequest(steps=3))
    with pytest.raises(UserError, match=r"--row: missing; .* decodes by label"):
        traverse(needs, DATA, tmp_path / "out", TraversalRequest(steps=3))
