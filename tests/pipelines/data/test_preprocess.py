"""Preprocessing against PIL's and torchvision's own operations."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from pipelines.data.preprocess import Preprocess, prepare_image


def noise(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    return Image.fromarray(pixels, mode=None)


def tensor(image: Image.Image) -> torch.Tensor:
    return reference.pil_to_tensor(image)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_identity_changes_no_pixel(mode):
    image = noise(mode, 28, 28)
    assert torch.equal(prepare_image(image, Preprocess(mode=mode, size=28)), tensor(image))


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [16, 50])
def test_square_resize_is_torchvisions(resample, antialias, size):
    image = noise("RGB", 37, 37)
    mode = v2.InterpolationMode.NEAREST_EXACT if resample == "nearest" else v2.InterpolationMode(resample)
    expected = reference.resize(tensor(image), [size, size], interpolation=mode, antialias=antialias)
    found = prepare_image(image, Preprocess(size=size, resample=resample, antialias=antialias))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 40), (25, 40), (3, 50)])
def test_center_crop_takes_the_largest_centred_square(width, height):
    image, side = noise("RGB", width, height), min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    expected = reference.resize(tensor(square), [20, 20], antialias=True)
    assert torch.equal(prepare_image(image, Preprocess(size=20)), expected)


def test_no_crop_stretches():
    image = noise("L", 40, 24)
    expected = reference.resize(tensor(image), [20, 20], antialias=True)
    assert torch.equal(prepare_image(image, Preprocess(mode="L", size=20, crop="none")), expected)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (1, 60)])
def test_pad_keeps_the_whole_picture_on_the_ground(width, height):
    image, colour = Image.new("RGB", (width, height), (10, 20, 30)), (200, 100, 50)
    found = prepare_image(image, Preprocess(size=20, crop="pad", background=colour)).permute(1, 2, 0).reshape(-1, 3)
    inside = (found == torch.tensor([10, 20, 30])).all(1).sum()
    outside = (found == torch.tensor(colour)).all(1).sum()
    assert inside == 20 * max(1, round(20 * min(width, height) / max(width, height)))
    assert inside + outside == 400


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_alpha_is_composited_on_the_ground(mode):
    image, ground = noise("RGBA", 16, 16), (12, 200, 90)
    under = Image.new("RGBA", image.size, (*ground, 255))
    expected = tensor(Image.alpha_composite(under, image).convert(mode))
    assert torch.equal(prepare_image(image, Preprocess(mode=mode, size=16, background=ground)), expected)


def test_grey_with_alpha_is_composited():
    image = Image.new("LA", (4, 4), (100, 0))
    assert (prepare_image(image, Preprocess(mode="L", size=4, background=(7, 7, 7))) == 7).all()


def test_a_transparent_palette_colour_shows_the_ground():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.info["transparency"] = 1
    found = prepare_image(image, Preprocess(size=4, background=(1, 2, 3)))
    assert found[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "LA", "PA", "RGBX"])
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_every_mode_is_accepted(mode, wanted):
    found = prepare_image(Image.new(mode, (9, 7)), Preprocess(mode=wanted, size=8))
    assert found.shape == (1 if wanted == "L" else 3, 8, 8)


def test_sixteen_bits_keep_the_upper_byte():
    wide = np.array([[0, 255, 256, 65535]] * 4, np.uint16)
    found = prepare_image(Image.fromarray(wide), Preprocess(mode="L", size=4))
    assert found[0, 0].tolist() == [0, 0, 1, 255]


def test_floating_point_pictures_are_refused():
    with pytest.raises(ValueError, match="mode F"):
        prepare_image(Image.new("F", (4, 4)), Preprocess(size=4))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("respected", [True, False])
def test_exif_orientation(tmp_path, orientation, respected):
    upright = noise("L", 8, 8)
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turns |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = upright.transpose(Image.Transpose[turns[orientation]]) if orientation in turns else upright
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        found = prepare_image(image, Preprocess(mode="L", size=8, apply_exif_orientation=respected))
    assert torch.equal(found, tensor(upright if respected else stored))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "film.gif") as image:
        assert prepare_image(image, Preprocess(size=8))[:, 4, 4].tolist() == [255, 0, 0]


def test_a_size_that_no_machine_can_hold_is_refused():
    with pytest.raises(ValueError, match="less than or equal to 16384"):
        Preprocess(size=10**6)
