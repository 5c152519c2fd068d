"""Samples under their captions, what is wrong with each marked."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from pipelines.base.atomic_files import replacing
from pipelines.base.image_grids import to_pil
from pipelines.evaluate.caption_accuracy import Verdict

COLUMNS, LETTERS = 6, 27  # images a row; letters a line of a caption
RIGHT, WRONG = "tab:green", "tab:red"


def draw_captions(path: str | Path, images: Sequence[Tensor], verdicts: Sequence[Verdict]) -> Path:
    """Write one PNG: each image, its caption above it, and whether it is right or which factors are wrong below it."""
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.75 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, image, verdict in zip(panels, images, verdicts, strict=False):
        panel.imshow(to_pil(image), interpolation="nearest")
        panel.set_title("\n".join(textwrap.wrap(verdict.caption, LETTERS)), fontsize=8)
        wrong = [name.replace("_", " ") for name in verdict.wrong]
        colour = WRONG if wrong else RIGHT
        all_wrong = len(wrong) > 1 and not any(verdict.sample.values())
        said = "no such scene" if all_wrong else f"wrong: {', '.join(wrong)}" if wrong else "right"
        panel.set_xlabel("\n".join(textwrap.wrap(said, LETTERS)), fontsize=8, color=colour)
        for spine in panel.spines.values():
            spine.set(color=colour, linewidth=2)
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
    for panel in panels[len(images) :]:
        panel.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=90)
    return Path(path)
