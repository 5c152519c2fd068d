"""The codebook at a glance: how often each code is used, and what the most and the least used codes look like."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipelines.base.atomic_files import replacing
from pipelines.base.image_grids import to_uint8
from pipelines.tokens.statistics import TokenWindow
from tokenizer import Autoencoder
from tokenizer.codebook_health import CodebookHealth

CODES, EXAMPLES = 8, 6  # codes shown at each end, places of each
GAP = 2  # pixels between patches


def draw_health(path: Path, window: TokenWindow, health: CodebookHealth, model: Autoencoder) -> Path:
    """Write one PNG: the usage of all codes, sorted, and patches of the most and least used ones.

    A patch is a place where the code occurs, cut from the whole decoded image together with the positions around it:
    what a code means is only seen in context. Codes of all depths are counted together.
    """
    counts = np.bincount(window.tokens.reshape(-1), minlength=window.codebook_size)
    order = np.argsort(-counts, kind="stable")
    used = order[counts[order] > 0]
    most, least = used[:CODES], used[CODES:][-CODES:]
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.subplot_mosaic([["usage", "usage"], ["most", "least"]], height_ratios=[1, 1.25])
    _draw_usage(axes["usage"], counts[order], health, window)
    for name, codes in (("most", most), ("least", least)):
        _draw_patches(axes[name], f"{name} used codes", codes, counts, window, model)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path


def patches(window: TokenWindow, model: Autoencoder, code: int, examples: int = EXAMPLES) -> Tensor:
    """Up to `examples` places of a code, evenly spread over the window: uint8 (e, c, s, s), decoded with their images.

    s is the side of a position and half of one on every side; what lies outside the picture is white.
    """
    _, width, depth = window.grid
    places = np.flatnonzero(window.tokens.reshape(-1) == code)
    places = places[np.unique(np.linspace(0, len(places) - 1, min(examples, len(places))).round().astype(int))]
    rows, cells = np.divmod(places, window.tokens.shape[1])
    cells = cells // depth
    device = next(model.parameters()).device
    with torch.inference_mode():
        images = to_uint8(model.decode_codes(window.codes(rows).to(device))).cpu()
    side = images.shape[-1] // width
    margin = max(1, side // 2)
    images = torch.nn.functional.pad(images, (margin, margin, margin, margin), value=255)
    span = side + 2 * margin
    return torch.stack(
        [
            image[:, y * side : y * side + span, x * side : x * side + span]
            for image, y, x in zip(images, cells // width, cells % width, strict=True)
        ]
    )


def _draw_usage(axes: Axes, counts: np.ndarray, health: CodebookHealth, window: TokenWindow) -> None:
    share = 100 * counts / max(counts.sum(), 1)
    used = share[share > 0]
    floor = used.min() / 2
    axes.stairs(used, np.arange(len(used) + 1) - 0.5, baseline=floor, fill=True)
    axes.axhline(100 / len(share), color="0.5", linewidth=0.8, linestyle="--")
    if len(used) < len(share):
        axes.axvspan(len(used) - 0.5, len(share) - 0.5, color="tab:red", alpha=0.15)
    axes.set_yscale("log")  # a few codes of plain ground would flatten all others
    axes.set_xlim(-0.5, len(share) - 0.5)
    axes.set_ylim(bottom=floor)
    axes.set_xlabel("codes, most used first (dashed: all equally often; red: never used)")
    axes.set_ylabel("% of tokens")
    axes.set_title(
        f"{window.name}: {int((counts > 0).sum())} of {len(counts)} codes used, perplexity {health.perplexity:.1f}: "
        f"{health.verdict}"
    )


def _draw_patches(
    axes: Axes, title: str, codes: np.ndarray, counts: np.ndarray, window: TokenWindow, model: Autoencoder
) -> None:
    axes.set_title(title)
    axes.axis("off")
    if not len(codes):
        axes.text(0.5, 0.5, "none left", ha="center", transform=axes.transAxes)
        return
    strips = [patches(window, model, int(code)) for code in codes]
    channels, side = strips[0].shape[1], strips[0].shape[-1]
    step = side + GAP
    sheet = np.full((len(codes) * step, EXAMPLES * step, channels), 255, np.uint8)
    for row, strip in enumerate(strips):
        for column, patch in enumerate(strip):
            sheet[row * step : row * step + side, column * step : column * step + side] = patch.permute(1, 2, 0).numpy()
        label = f"code {codes[row]} ({counts[codes[row]]:,})"
        axes.text(-GAP, row * step + side / 2, label, ha="right", va="center", fontsize=8)
    axes.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
