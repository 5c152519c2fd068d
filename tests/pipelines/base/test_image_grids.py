"""Pixels survive a file, grids place tiles where they belong, texts stay inside."""

import os
import threading
import time

import pytest
import torch
from PIL import Image

from pipelines.base import image_grids
from pipelines.base.image_grids import GAP, save_grid, save_images, save_png, to_pil, to_uint8


def test_uint8_survives_the_way_through_a_png(tmp_path):
    image = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8)
    save_png(tmp_path / "a.png", image, text={"label": "boot"})
    with Image.open(tmp_path / "a.png") as back:
        assert back.info["label"] == "boot"
        assert list(back.convert("RGB").tobytes()) == image.permute(1, 2, 0).flatten().tolist()


def test_many_images_are_written_as_each_alone(tmp_path):
    images = torch.rand(20, 3, 6, 5)
    names, texts = [f"{i % 3}/{i}.png" for i in range(20)], [{"row": str(i)} for i in range(20)]
    save_images([tmp_path / "many" / name for name in names], images, texts)
    for name, image, text in zip(names, images, texts, strict=True):
        save_png(tmp_path / "one" / name, image, text)
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert sum(path.is_file() for path in (tmp_path / "many").rglob("*")) == 20


def test_an_image_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        save_images([tmp_path / "a.png", tmp_path / "file" / "b.png"], torch.zeros(2, 1, 4, 4))


def test_floats_are_rounded_to_the_nearest_level_and_clamped():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels / 255), levels)
    assert to_uint8(torch.tensor([-1.0, 2.0])).tolist() == [0, 255]


def test_the_mode_follows_the_channels():
    assert (to_pil(torch.zeros(1, 4, 4)).mode, to_pil(torch.zeros(3, 4, 4)).mode) == ("L", "RGB")
    with pytest.raises(ValueError, match=r"\(1 or 3, H, W\)"):
        to_pil(torch.zeros(4, 4, 4))


def test_tiles_lie_in_rows_in_their_order(tmp_path):
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 5, 5) * 40
    save_grid(tmp_path / "grid.png", images, columns=3, scale=1)
    with Image.open(tmp_path / "grid.png") as grid:
        step = 5 + GAP
        centres = [grid.getpixel((GAP + c * step + 2, GAP + r * step + 2)) for r in range(2) for c in range(3)]
        assert grid.mode == "L"
    assert centres == [0, 40, 80, 120, 160, 200]


def test_captions_and_labels_touch_no_tile(tmp_path):
    images = torch.full((4, 3, 16, 16), 128, dtype=torch.uint8)
    save_grid(
        tmp_path / "g.png",
        images,
        columns=2,
        captions=["a caption that is far too long"] * 4,
        row_labels=["one", "two"],
        column_labels=["left", "right"],
        scale=2,
    )
    with Image.open(tmp_path / "g.png") as grid:
        counts = {colour: n for n, colour in grid.convert("RGB").getcolors(1 << 20) or ()}
    assert counts[(128, 128, 128)] >= 4 * 32 * 32
    assert len(counts) > 2  # and text was written


def test_a_long_text_goes_on_in_the_next_line_and_ends_where_there_is_no_more_room():
    font = image_grids.ImageFont.load_default(size=12)
    text = "a small red circle left of a large blue square on a grey ground"
    lines = image_grids._lines(text, font, 128)
    assert " ".join(lines) == text and 2 <= len(lines) <= image_grids.MAX_LINES
    assert all(font.getlength(line) <= 128 for line in lines)
    assert font.getlength(f"{lines[0]} {lines[1].split()[0]}") > 128  # no line is shorter than it has to be
    assert image_grids._lines("red circle", font, 128) == ["red circle"] and image_grids._lines("", font, 128) == [""]
    cut = image_grids._lines(text * 3, font, 128)
    assert len(cut) == image_grids.MAX_LINES and cut[-1].endswith("…") and font.getlength(cut[-1]) <= 128
    assert image_grids._lines("x" * 99, font, 50)[0].endswith("…")


def test_texts_of_one_line_leave_a_figure_as_it_is_and_longer_ones_make_it_higher():
    tiles = torch.full((2, 3, 32, 32), 0.5)
    heights = [image_grids.image_grid(tiles, 2, [text] * 2).height for text in ("red", "a red circle", "a " * 60)]
    assert heights[0] == heights[1] < heights[2]
    above = [image_grids.image_grid(tiles, 2, column_labels=[text, "x"]).height for text in ("red", "a " * 60)]
    assert above[1] - above[0] == heights[2] - heights[0]


@pytest.mark.parametrize(
    ("images", "columns", "captions", "words"),
    [
        (torch.zeros(0, 1, 4, 4), 2, None, "at least one image"),
        (torch.zeros(2, 1, 4, 4), 2, ["one"], "one caption an image"),
        ([torch.zeros(1, 4, 4), torch.zeros(1, 5, 5)], 2, None, "one size"),
    ],
)
def test_a_grid_that_cannot_be_laid_is_refused(tmp_path, images, columns, captions, words):
    with pytest.raises(ValueError, match=words):
        save_grid(tmp_path / "g.png", images, columns, captions)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "number"), [(0.0, 1), (0.02, 3)])
def test_threads_write_large_pictures_only(tmp_path, monkeypatch, seconds, number):
    """The caller writes small ones, and the first few of the others."""
    seen = set()

    def save(*_, **__):
        seen.add(threading.get_ident())
        if seconds:
            time.sleep(seconds)

    monkeypatch.setattr(image_grids, "save_png", save)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    save_images([tmp_path / f"{at}.png" for at in range(12)], torch.zeros(12, 1, 2, 2))
    assert len(seen) == number
