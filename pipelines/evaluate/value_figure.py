"""Histograms of figures of single images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipelines.base.atomic_files import replacing

MOST_BINS = 60


def draw_histograms(
    path: str | Path, values: Mapping[str, Sequence[float]], xlabel: str, title: str, show_means: bool = True
) -> Path:
    """Write one PNG: a histogram of each named sequence in one panel, as shares of its images; dashed lines are means.

    The outermost bins hold what lies beyond the 0.1st and 99.9th percentile, so that one odd image flattens nothing.
    """
    found = {name: np.asarray(numbers, np.float64) for name, numbers in values.items()}
    found = {name: numbers[np.isfinite(numbers)] for name, numbers in found.items()}
    everything = np.concatenate(list(found.values()))
    low, high = np.percentile(everything, [0.1, 99.9]) if len(everything) else (0.0, 1.0)
    bins = min(MOST_BINS, 2 + int(len(everything) ** 0.5))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, numbers) in enumerate(found.items()):
        if not len(numbers):
            continue
        counts, _ = np.histogram(numbers.clip(edges[0], edges[-1]), edges)
        label = f"{name}: mean {numbers.mean():.2f}" if show_means else f"{name} ({len(numbers):,} images)"
        axes.stairs(100 * counts / len(numbers), edges, fill=True, alpha=0.5, color=f"C{number}", label=label)
        if show_means:
            axes.axvline(numbers.mean(), color=f"C{number}", linewidth=1, linestyle="--")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("% of images")
    axes.set_title(title, fontsize=11, wrap=True)
    axes.legend(fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)
