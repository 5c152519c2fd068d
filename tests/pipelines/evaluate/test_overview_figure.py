"""The overview figure: one row of panels an entry, and every panel shows its own content."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.evaluate.overview_figure import OverviewRow, draw_overview

SIDE = 8


def row(channels: int = 3) -> OverviewRow:
    codes = torch.arange(SIDE * SIDE).view(SIDE, SIDE)
    image = torch.full((channels, 32, 32), 0.5)
    return OverviewRow(image, codes, image, codes.flip(0), image, "red circle")


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_entry_has_a_row(tmp_path, channels):
    one = pixels(draw_overview(tmp_path / "one.png", [row(channels)], 64))
    two = pixels(draw_overview(tmp_path / "two.png", [row(channels)] * 2, 64))
    assert one.shape[1] == two.shape[1] and two.shape[0] > 1.8 * one.shape[0]


@pytest.mark.parametrize("panel", range(5))
def test_a_change_of_one_panel_is_seen_there_and_nowhere_else(tmp_path, panel):
    name = ("image", "codes", "reconstruction", "sampled_codes", "sample")[panel]
    before = row()
    after = replace(before, **{name: 1 - getattr(before, name) if "codes" in name else torch.zeros(3, 32, 32)})
    first = pixels(draw_overview(tmp_path / "a.png", [before], 64))
    second = pixels(draw_overview(tmp_path / "b.png", [after], 64))
    columns = np.flatnonzero((first != second).any(axis=(0, 2)))
    width = first.shape[1] / 5
    assert len(columns) and panel * width <= columns.min() and columns.max() < (panel + 1) * width
