"""From pixels to codes: a cell is redrawn if any of its pixels is, at every level, with all of its quantizers."""

import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_png
from pipelines.data.preprocess import Preprocess
from pipelines.models.image_masks import (
    codes_under,
    grow_mask,
    pixels_of,
    prepare_mask,
    read_mask,
    rectangle_mask,
)
from tokenizer import CodeGrid, split_codes

PREPROCESS = Preprocess(mode="RGB", size=16)


def pixels(*places, size=16):
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    for row, column in places:
        mask[0, row, column] = True
    return mask


@pytest.mark.parametrize(
    ("text", "rows", "columns"),
    [
        ("0,50%,100%,100%", (8, 16), (0, 16)),
        ("4, 6, 12, 8", (6, 8), (4, 12)),
        ("0,0,1,100%", (0, 16), (0, 1)),
        ("30%,30%,70%,70%", (4, 12), (4, 12)),  # 4.8 to 11.2: every pixel of which a part is inside
    ],
)
def test_a_rectangle_is_in_pixels_or_in_percent(text, rows, columns):
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(rectangle_mask([text], 16), expected)


def test_rectangles_are_united():
    both = rectangle_mask(["0,0,2,2", "10,10,16,16"], 16)
    assert torch.equal(both, rectangle_mask(["0,0,2,2"], 16) | rectangle_mask(["10,10,16,16"], 16))


@pytest.mark.parametrize(
    "text",
    ["", "1,2,3", "1,2,3,4,5", "a,0,1,1", "0.5,0,1,1", "5,0,5,9", "0,9,9,2", "-1,0,4,4", "0,0,17,4", "0,0,nan%,4"],
)
def test_a_rectangle_that_is_none_is_refused_by_its_option(text):
    with pytest.raises(UserError, match="--redraw: found "):
        rectangle_mask([text], 16)


@pytest.mark.parametrize("quantizers", [1, 3])
def test_one_pixel_redraws_its_cell_with_all_quantizers(quantizers):
    found = codes_under(pixels((5, 13)), (CodeGrid(4, 4, quantizers, 9),))
    expected = torch.zeros(1, 4, 4, quantizers, dtype=torch.bool)
    expected[0, 1, 3] = True
    assert torch.equal(found, expected)


def test_one_pixel_redraws_a_cell_of_every_level():
    grids = (CodeGrid(2, 2, 1, 9), CodeGrid(8, 8, 2, 9))
    coarse, fine = split_codes(codes_under(pixels((5, 13)), grids), grids)
    assert coarse.nonzero().tolist() == [[0, 0, 1, 0]]
    assert fine.nonzero().tolist() == [[0, 2, 6, 0], [0, 2, 6, 1]]


def test_cells_that_share_a_pixel_are_both_redrawn():
    """Three cells over 16 pixels: pixel 5 lies in the first two."""
    found = codes_under(pixels((0, 5)), (CodeGrid(3, 3, 1, 9),))[0, 0, :, 0]
    assert found.tolist() == [True, True, False]


def test_the_pixels_of_redrawn_cells_cover_the_mask():
    mask = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.02
    for grids in [(CodeGrid(4, 4, 2, 9),), (CodeGrid(2, 2, 1, 9), CodeGrid(8, 8, 1, 9))]:
        cells = pixels_of(codes_under(mask, grids), grids, 16)
        assert (cells | ~mask).all() and not cells.all()


def test_a_margin_grows_the_mask_on_all_sides():
    grown = grow_mask(pixels((0, 5)), 2)
    expected = torch.zeros(1, 16, 16, dtype=torch.bool)
    expected[0, :3, 3:8] = True
    assert torch.equal(grown, expected) and torch.equal(grow_mask(grown, 0), grown)
    assert grow_mask(grown, 2**40).all()


def test_a_mask_is_cropped_and_resized_as_images_are():
    mask = Image.new("L", (64, 32))  # the centre is pixels 16 to 47
    mask.paste(255, (16, 0, 32, 32))
    assert torch.equal(prepare_mask(mask, PREPROCESS), rectangle_mask(["0,0,8,16"], 16))


def test_what_is_transparent_or_padded_is_kept():
    assert not prepare_mask(Image.new("RGBA", (16, 16), (255, 255, 255, 0)), PREPROCESS).any()
    white = prepare_mask(Image.new("L", (16, 8), 255), PREPROCESS.model_copy(update={"crop": "pad"}))
    assert torch.equal(white, rectangle_mask(["0,4,16,12"], 16))


def test_a_mask_is_read_from_a_file_or_the_file_is_named(tmp_path):
    expected = rectangle_mask(["3,2,9,16"], 16)
    save_png(tmp_path / "mask.png", expected[None].float())
    assert torch.equal(read_mask(tmp_path / "mask.png", PREPROCESS), expected)
    (tmp_path / "text.png").write_text("no image")
    for name, problem in (("gone.png", "no such file"), ("text.png", "cannot be read as an image")):
        with pytest.raises(UserError, match=f"--mask: .*{name}: {problem}"):
            read_mask(tmp_path / name, PREPROCESS)
