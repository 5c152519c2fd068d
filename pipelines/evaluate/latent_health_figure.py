"""A continuous latent at a glance: which units are used, and how the aggregate posterior lies to the prior."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.base.atomic_files import replacing
from tokenizer.latent_health import ACTIVE_VARIANCE, LatentHealth


def draw_latent_health(path: str | Path, health: LatentHealth, title: str = "latent") -> Path:
    """Write one PNG: the KL of every unit, largest first; below, the moments of the aggregate posterior.

    Units that are not active stand on red. Without a KL for each unit its spread takes the place: the variance of its
    posterior's mean over images, as it is or as a share of the aggregate variance.
    """
    size = health.spread if health.kl is None else health.kl
    order = np.argsort(-size.numpy(), kind="stable")
    figure = Figure(figsize=(9, 6), layout="constrained")
    bars, moments = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 1])
    _draw_units(bars, size.numpy()[order], health.active.numpy()[order])
    if health.kl is None:
        bars.axhline(ACTIVE_VARIANCE, color="0.5", linewidth=0.8, linestyle="--")
        bars.set_yscale("log")
        bars.set_ylabel("spread of the posterior's mean")
    else:
        bars.set_ylabel("KL, nats an image")
    bars.set_title(f"{title}, {health.images:,} images: {health.verdict}\n{health.reason}", fontsize=11, wrap=True)
    _draw_moments(moments, health.aggregate_mean.numpy()[order], health.aggregate_variance.numpy()[order])
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)


def _draw_units(axes: Axes, size: np.ndarray, active: np.ndarray) -> None:
    edges = np.arange(len(size) + 1) - 0.5
    axes.stairs(size, edges, fill=True, color="tab:blue")
    shading = {"transform": axes.get_xaxis_transform(), "color": "tab:red", "alpha": 0.15}
    axes.stairs((~active).astype(float), edges, fill=True, **shading)
    axes.text(0.99, 0.95, f"{(~active).sum()} not active (red)", ha="right", va="top", transform=axes.transAxes)


def _draw_moments(axes: Axes, mean: np.ndarray, variance: np.ndarray) -> None:
    units = np.arange(len(mean))
    for level in (0, 1):
        axes.axhline(level, color="0.5", linewidth=0.8, linestyle="--")
    axes.plot(units, mean, "o", markersize=4, label="mean (dashed: 0)")
    axes.plot(units, variance, "s", markersize=4, label="variance (dashed: 1)")
    axes.set_ylabel("aggregate posterior")
    axes.set_xlabel("latent units, the most used first")
    axes.set_xlim(-0.5, len(mean) - 0.5)
    axes.legend(loc="center right")
