"""Interpolation: the ends are the reconstructions, and what lies between is decoded from the latents between."""

import math

import pytest
import torch
from PIL import Image, ImageSequence

from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_png, to_uint8
from pipelines.data import open_images
from pipelines.data.preprocess import Preprocess
from pipelines.evaluate.chosen_images import choose_images
from pipelines.evaluate.latent_paths import linear_path, spherical_path
from pipelines.interpolate import InterpolationRequest, interpolate, interpolated
from pipelines.models.checkpoint import load_tokenizer
from pipelines.recipes.data_arguments import data_of
from tests.pipelines.conftest import grey_data, write_conditional_vae, write_vae

DATA = grey_data(train=8, test=9)
PREPROCESS = Preprocess(mode="L", size=16)


def chosen_rows(*rows):
    return choose_images([str(row) for row in rows], PREPROCESS, lambda: open_images(DATA, "test"))


def test_a_line_is_equally_spaced():
    start, end = torch.randn(2, 3, 1, 2).unbind()
    path = linear_path(start, end, 5)
    torch.testing.assert_close(path[0], start)
    torch.testing.assert_close(path[-1], end)
    torch.testing.assert_close(path[1:] - path[:-1], ((end - start) / 4).expand(4, 3, 1, 2))


def test_a_spherical_path_turns_by_equal_angles_and_keeps_the_length():
    start, end = torch.nn.functional.normalize(torch.randn(2, 6, dtype=torch.float64), dim=1).view(2, 6, 1, 1).unbind()
    path = spherical_path(3 * start, 3 * end, 7).flatten(1)
    torch.testing.assert_close(path.norm(dim=1), torch.full((7,), 3.0, dtype=torch.float64))
    angles = torch.nn.functional.cosine_similarity(path[1:], path[:-1]).acos()
    whole = math.acos((start * end).sum().item())
    torch.testing.assert_close(angles, torch.full((6,), whole / 6, dtype=torch.float64))


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.0])
def test_latents_that_are_parallel_have_a_line(factor):
    start = torch.randn(3, 1, 1)
    torch.testing.assert_close(spherical_path(start, factor * start, 4), linear_path(start, factor * start, 4))


@pytest.mark.parametrize("spherical", [False, True])
def test_the_ends_are_reconstructions_and_the_middle_is_decoded_from_the_path(tiny_vae, spherical):
    model, chosen = load_tokenizer(tiny_vae).model, chosen_rows(0, 4, 2, 1)
    pairs = (("0", "4"), ("2", "1"))
    tiles = interpolated(model, chosen, InterpolationRequest(pairs=pairs, steps=3, spherical=spherical))
    assert tiles.shape == (2, 3, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(tiles[:, 0], to_uint8(model.reconstruct(chosen.image[::2])), atol=1, rtol=0)
        torch.testing.assert_close(tiles[:, -1], to_uint8(model.reconstruct(chosen.image[1::2])), atol=1, rtol=0)
        z = model.encode(chosen.image).z
        path = spherical_path if spherical else linear_path
        middle = torch.stack([path(z[0], z[1], 3)[1], path(z[2], z[3], 3)[1]])
        torch.testing.assert_close(tiles[:, 1], to_uint8(model.decode(middle)), atol=1, rtol=0)


def test_each_point_of_a_discrete_tokenizer_is_quantised(tiny_tokenizer, make_data, monkeypatch):
    model = load_tokenizer(tiny_tokenizer).model
    images = open_images(make_data(train=8, test=5), "test")
    chosen = choose_images(["0", "3"], Preprocess(mode="RGB", size=32), lambda: images)
    decode, seen = model.decode, []
    monkeypatch.setattr(model, "decode", lambda z, labels: seen.append(z) or decode(z, labels))
    tiles = interpolated(model, chosen, InterpolationRequest(pairs=(("0", "3"),), steps=5))
    vectors, embedding = seen[0].permute(0, 2, 3, 1).flatten(0, 2), model.bottleneck.embedding
    assert embedding is not None
    torch.testing.assert_close(torch.cdist(vectors, embedding[0]).amin(1), torch.zeros(5 * 64), atol=1e-3, rtol=0)
    with torch.no_grad():
        codes = model.encode(chosen.image).codes
        torch.testing.assert_close(tiles[0, [0, -1]], to_uint8(model.decode_codes(codes)), atol=1, rtol=0)


def test_a_condition_is_that_of_the_nearer_end(tmp_path):
    classes = tuple(open_images(DATA, "test").classes or ())
    condition = {"kind": "concatenation", "num_classes": len(classes), "dim": 4}
    model = load_tokenizer(write_vae(tmp_path, classes=classes, condition=condition)).model
    chosen = chosen_rows(0, 1)
    assert chosen.label[0] != chosen.label[1]
    tiles = interpolated(model, chosen, InterpolationRequest(pairs=(("0", "1"),), steps=4))
    with torch.no_grad():
        start, end = model.encode(chosen.image, condition=chosen.label).z
        path = linear_path(start, end, 4)
        expected = to_uint8(model.decode(path, chosen.label[[0, 0, 1, 1]]))
    torch.testing.assert_close(tiles[0], expected, atol=1, rtol=0)


def test_rows_and_files_are_drawn_and_not_drawn_twice(tiny_vae, tmp_path, capsys):
    save_png(tmp_path / "a.png", chosen_rows(3).image[0])
    request = InterpolationRequest(pairs=((str(tmp_path / "a.png"), "1"),), steps=5, animation=True)
    output = interpolate(tiny_vae, DATA, tmp_path / "out", request)
    with Image.open(output / "interpolation.png") as figure, Image.open(output / "interpolation.gif") as animation:
        assert figure.width > 4 * figure.height and len(list(ImageSequence.Iterator(animation))) == 8
    stamp = (output / "interpolation.png").stat().st_mtime_ns
    interpolate(tiny_vae, DATA, output, request)
    assert (output / "interpolation.png").stat().st_mtime_ns == stamp and "already" in capsys.readouterr().err
    with pytest.raises(UserError, match="another request"):
        interpolate(tiny_vae, DATA, output, request.model_copy(update={"steps": 6}))
    files = InterpolationRequest(pairs=((str(tmp_path / "a.png"), str(tmp_path / "a.png")),))
    interpolate(tiny_vae, None, tmp_path / "files", files)


@pytest.mark.parametrize(("name", "message"), [("9", "row 9: the split has 9 images"), ("gone.png", "no such file")])
def test_an_image_that_is_not_there_is_named(tiny_vae, tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        interpolate(tiny_vae, DATA, tmp_path / "out", InterpolationRequest(pairs=(("0", name),)))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_image_is_named(tiny_vae, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        interpolate(tiny_vae, None, tmp_path / "out", InterpolationRequest(pairs=((str(tmp_path / "a.png"),) * 2,)))


def test_a_file_has_no_label_for_a_model_that_needs_one(tmp_path):
    classes = tuple(open_images(DATA, "test").classes or ())
    save_png(tmp_path / "image.png", open_images(DATA, "test").read_batch([0]).image[0])
    request = InterpolationRequest(pairs=(("0", str(tmp_path / "image.png")),))
    interpolate(write_conditional_vae(tmp_path / "learned", classes, dropout=0.1), DATA, tmp_path / "out", request)
    folder = write_conditional_vae(tmp_path / "needs", classes)
    with pytest.raises(UserError, match=r"image\.png: has no label, and the model knows no image"):
        interpolate(folder, DATA, tmp_path / "refused", request)


def test_the_run_of_a_prior_has_no_images(tmp_path):
    (tmp_path / "recipe.yaml").write_text("kind: prior\ntokens: tokens\n")
    with pytest.raises(UserError, match=r"data: missing; .* but this is one of a prior"):
        data_of(None, tmp_path)
