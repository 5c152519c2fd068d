"""Which latent tells about which factor, as a heat map."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipelines.base.atomic_files import replacing
from pipelines.evaluate.disentanglement.report import DisentanglementReport

MAX_LATENTS = 24  # rows; of more latents those that tell most are shown


def draw_mutual_information(path: str | Path, report: DisentanglementReport, title: str = "") -> Path:
    """Write one PNG: latents x factors, each cell the share of the factor's entropy that the latent tells.

    A disentangled representation has one dark cell in each column, in different rows. Under a factor's name stands its
    gap, the two darkest cells' difference; MIG is the mean of the gaps.
    """
    information = report.information
    shown = np.sort(np.argsort(-information.shares.max(1), kind="stable")[:MAX_LATENTS])
    shares = information.shares[shown]
    figure = Figure(figsize=(2.6 + 0.95 * len(report.factors), 1.9 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column]
        colour = "white" if share > 0.55 else "black"
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=8, color=colour)
    gaps = zip(report.factors, information.gaps, strict=True)
    axes.set_xticks(range(len(report.factors)), [f"{name}\ngap {gap:.2f}" for name, gap in gaps], fontsize=8)
    axes.set_yticks(range(len(shown)), [str(latent) for latent in shown], fontsize=8)
    hidden = report.latents - len(shown)
    axes.set_ylabel("latent" + (f" ({hidden} that tell less are left out)" if hidden else ""))
    axes.set_title(f"{title + ': ' if title else ''}MIG {report.mig:.3f}", fontsize=11)
    figure.colorbar(image, ax=axes, label="mutual information / entropy of the factor")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return Path(path)
