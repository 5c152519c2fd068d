"""One figure that shows the idea: an image, its grid of codes, its reconstruction; then codes that were sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipelines.base.atomic_files import replacing
from pipelines.base.image_grids import to_uint8

MAX_LETTERS = 32  # of a line of a title
MAX_NUMBERED = 16  # codes a side; the numbers of a finer grid would be too small to read


@dataclass(frozen=True)
class OverviewRow:
    """A held-out image with its codes and reconstruction, and sampled codes with their decoded image.

    Images are (c, H, W), uint8 or float in [0, 1]; codes are those of the first quantizer of each level, coarse to
    fine. `title` names what was asked of the sample.
    """

    image: UInt8[Tensor, "c h w"] | Float[Tensor, "c h w"]
    codes: tuple[Int[Tensor, "_ _"], ...]
    reconstruction: Float[Tensor, "c h w"]
    sampled_codes: tuple[Int[Tensor, "_ _"], ...]
    sample: Float[Tensor, "c h w"] | UInt8[Tensor, "c h w"]
    title: str = ""


def draw_overview(path: str | Path, rows: list[OverviewRow], num_codes: Sequence[int]) -> Path:
    """Write one PNG with a row of panels for each entry of `rows`. `num_codes`: the size of each level's codebook."""
    levels = len(num_codes)
    figure = Figure(figsize=(2.2 * (3 + 2 * levels), 2.45 * len(rows) + 0.1), layout="constrained")
    grid = figure.subplots(len(rows), 3 + 2 * levels, squeeze=False)
    for panels, row in zip(grid, rows, strict=True):
        _show_image(panels[0], row.image)
        for i, size in enumerate(num_codes):
            _show_codes(panels[1 + i], row.codes[i], size)
            _show_codes(panels[2 + levels + i], row.sampled_codes[i], size)
        _show_image(panels[1 + levels], row.reconstruction)
        _show_image(panels[-1], row.sample)
        panels[-1].set_xlabel(fill(row.title, MAX_LETTERS), fontsize=9)
    finer = ["+ finer ones"] * (levels - 1)
    titles = ("an image", "→ its codes", *finer, "→ decoded again", "new codes, sampled", *finer, "→ a new image")
    for panel, title in zip(grid[0], titles, strict=True):
        panel.set_title(title, fontsize=11)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=80)
    return Path(path)


def _show_image(panel: Axes, image: Tensor) -> None:
    pixels = to_uint8(image).cpu().permute(1, 2, 0).numpy()
    panel.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    _no_ticks(panel)


def _show_codes(panel: Axes, codes: Tensor, num_codes: int) -> None:
    """Each code as its number on a colour of its own; neighbours in number get distant colours."""
    hues = (codes.cpu() * 0.61803) % 1  # steps of the golden ratio spread over the colour circle
    panel.imshow(hues.numpy(), cmap="hsv", vmin=0, vmax=1, alpha=0.45)
    if max(codes.shape) <= MAX_NUMBERED:
        size = min(9.0, 68 / max(codes.shape) / (0.35 + 0.3 * len(str(num_codes - 1))))
        for row, line in enumerate(codes.tolist()):
            for column, code in enumerate(line):
                panel.text(column, row, str(code), ha="center", va="center", fontsize=size)
    _no_ticks(panel)


def _no_ticks(panel: Axes) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
