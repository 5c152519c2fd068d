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
    return OverviewRow(image, (codes,), image, (codes.flip(0),), image, "red circle")


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_entry_has_a_row(tmp_path, channels):
    one = pixels(draw_overview(tmp_path / "one.png", [row(channels)], [64]))
    two = pixels(draw_overview(tmp_path / "two.png", [row(channels)] * 2, [64]))
    assert one.shape[1] == two.shape[1] and two.shape[0] > 1.8 * one.shape[0]


PANELS = [("image", 0), ("codes", 0), ("reconstruction", 0), ("sampled_codes", 0), ("sample", 0)]
TWO_LEVELS = [PANELS[0], PANELS[1], ("codes", 1), PANELS[2], PANELS[3], ("sampled_codes", 1), PANELS[4]]


@pytest.mark.parametrize(
    ("panels", "panel"), [(panels, i) for panels in (PANELS, TWO_LEVELS) for i in range(len(panels))]
)
def test_a_change_of_one_panel_is_seen_there_and_nowhere_else(tmp_path, panels, panel):
    (name, level), levels = panels[panel], (len(panels) - 3) // 2
    one = row()
    finer = (torch.arange(4 * SIDE * SIDE).view(2 * SIDE, 2 * SIDE),) * (levels - 1)
    before = replace(one, codes=one.codes + finer, sampled_codes=one.sampled_codes + finer)
    codes = tuple(1 - each if i == level else each for i, each in enumerate(getattr(before, name)))
    after = replace(before, **{name: codes if "codes" in name else torch.zeros(3, 32, 32)})
    sizes = [64, 256][:levels]
    first = pixels(draw_overview(tmp_path / "a.png", [before], sizes))
    second = pixels(draw_overview(tmp_path / "b.png", [after], sizes))
    columns = np.flatnonzero((first != second).any(axis=(0, 2)))
    width = first.shape[1] / len(panels)
    assert len(columns) and panel * width <= columns.min() and columns.max() < (panel + 1) * width
