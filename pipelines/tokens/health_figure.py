"""The codebook at a glance: how often each code is used, and what the most and the least used codes look like."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from pipelines.base.atomic_files import replacing
from pipelines.base.image_grids import to_uint8
from pipelines.tokens.statistics import TokenWindow
from tokenizer import Autoencoder, CodebookHealth

CODES, EXAMPLES = 8, 6  # codes shown at each end, places of each
GAP = 2  # pixels between patches


def draw_health(path: Path, window: TokenWindow, levels: Sequence[CodebookHealth], model: Autoencoder) -> Path:
    """Write one PNG: of each level the usage of all codes, sorted, and patches of the most and least used ones.

    A patch is a place where the code occurs, cut from the whole decoded image together with the positions around it:
    what a code means is only seen in context. Codes of all quantizers are counted together.
    """
    figure = Figure(figsize=(11, 6.2 * len(levels)), layout="constrained")
    blocks = [figure] if len(levels) == 1 else figure.subfigures(len(levels), 1, squeeze=False)[:, 0]
    for level, (block, health) in enumerate(zip(blocks, levels, strict=True)):
        _draw_level(block, window, level, health, model)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path


def _draw_level(
    figure: FigureBase, window: TokenWindow, level: int, health: CodebookHealth, model: Autoencoder
) -> None:
    counts = health.counts.sum(0).numpy()
    order = np.argsort(-counts, kind="stable")
    used = order[counts[order] > 0]
    most, least = used[:CODES], used[CODES:][-CODES:]
    axes = figure.subplot_mosaic([["usage", "usage"], ["most", "least"]], height_ratios=[1, 1.25])
    name = window.name
    if len(window.grids) > 1:
        name += f", level {level + 1} of {len(window.grids)} ({window.grids[level]})"
    _draw_usage(axes["usage"], counts[order], health, name)
    places = find_places(window, counts, [*most.tolist(), *least.tolist()], level=level)
    for end, codes in (("most", most), ("least", least)):
        strips = {code: (int(counts[code]), patches(window, model, places[code], level)) for code in codes.tolist()}
        _draw_patches(axes[end], f"{end} used codes", strips)


@dataclass
class Places:
    """Where a code occurs: rows of tokens, and the position of the code among those of its level in each."""

    rows: list[np.ndarray] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


def find_places(
    window: TokenWindow, counts: np.ndarray, codes: Sequence[int], examples: int = EXAMPLES, level: int = 0
) -> dict[int, Places]:
    """Up to `examples` places of each code of a level, evenly spread over its occurrences; the window is read once.

    `counts` (K,) says how often each code occurs.
    """
    found = {code: Places() for code in codes}
    spread = {code: np.linspace(0, counts[code] - 1, min(examples, counts[code])).round() for code in codes}
    wanted = {code: np.unique(places).astype(np.int64) for code, places in spread.items()}
    seen = dict.fromkeys(codes, 0)
    for chunk in window.read():
        own = chunk[:, window.columns(level)]
        for code in codes:
            if seen[code] > wanted[code][-1]:
                continue
            here = np.flatnonzero(own.reshape(-1) == code)
            inside = wanted[code][(wanted[code] >= seen[code]) & (wanted[code] < seen[code] + len(here))] - seen[code]
            rows, positions = np.divmod(here[inside], own.shape[1])
            found[code].rows += [chunk[row].copy() for row in rows]
            found[code].positions += positions.tolist()
            seen[code] += len(here)
    return found


def patches(window: TokenWindow, model: Autoencoder, places: Places, level: int = 0) -> Tensor:
    """The places of one code of a level as images: uint8 (e, c, s, s), cut from their decoded images.

    s is the side of a position and half of one on every side; what lies outside the image is white.
    """
    _, width, num_quantizers = window.grids[level].axes
    device = next(model.parameters()).device
    with torch.inference_mode():
        images = to_uint8(model.decode_codes(window.codes(np.stack(places.rows)).to(device))).cpu()
    side = images.shape[-1] // width
    margin = max(1, side // 2)
    images = torch.nn.functional.pad(images, (margin, margin, margin, margin), value=255)
    span = side + 2 * margin
    cells = [divmod(position // num_quantizers, width) for position in places.positions]
    return torch.stack(
        [
            image[:, y * side : y * side + span, x * side : x * side + span]
            for image, (y, x) in zip(images, cells, strict=True)
        ]
    )


def _draw_usage(axes: Axes, counts: np.ndarray, health: CodebookHealth, name: str) -> None:
    share = 100 * counts / max(counts.sum(), 1)
    used = share[share > 0]
    floor = used.min() / 2
    axes.stairs(used, np.arange(len(used) + 1) - 0.5, baseline=floor, fill=True)
    axes.axhline(100 / len(share), color="0.5", linewidth=0.8, linestyle="--")
    if len(used) < len(share):
        axes.axvspan(len(used) - 0.5, len(share) - 0.5, color="tab:red", alpha=0.15)
    axes.set_yscale("log")  # a few codes of plain background would flatten all others
    axes.set_xlim(-0.5, len(share) - 0.5)
    axes.set_ylim(bottom=floor)
    axes.set_xlabel("codes, most used first (dashed: all equally often; red: never used)")
    axes.set_ylabel("% of tokens")
    axes.set_title(
        f"{name}: {int((counts > 0).sum())} of {len(counts)} codes used, perplexity {health.perplexity:.1f}: "
        f"{health.verdict}"
    )


def _draw_patches(axes: Axes, title: str, strips: dict[int, tuple[int, Tensor]]) -> None:
    """One row a code: how often it occurs, and its patches."""
    axes.set_title(title)
    axes.axis("off")
    if not strips:
        axes.text(0.5, 0.5, "no other code is used", ha="center", transform=axes.transAxes)
        return
    channels, side = next(iter(strips.values()))[1].shape[1::2]
    step = side + GAP
    sheet = np.full((len(strips) * step, EXAMPLES * step, channels), 255, np.uint8)
    for row, (code, (count, strip)) in enumerate(strips.items()):
        for column, patch in enumerate(strip):
            sheet[row * step : row * step + side, column * step : column * step + side] = patch.permute(1, 2, 0).numpy()
        axes.text(-GAP, row * step + side / 2, f"code {code} ({count:,})", ha="right", va="center", fontsize=8)
    axes.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
