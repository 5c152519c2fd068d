"""Figures while training: metrics.jsonl always, curves.png from it, and the trackers that the recipe asks for."""

import importlib.util
import json
from collections import defaultdict
from pathlib import Path
from typing import Literal

from pipelines.base.atomic_files import replacing, write_text
from pipelines.base.errors import UserError

Tracker = Literal["tensorboard", "wandb", "trackio"]


def check_trackers(trackers: tuple[Tracker, ...]) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        UserError: names the extra to install.
    """
    for tracker in trackers:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"training.trackers: {tracker!r} is not installed; expected after `pip install smalti[{tracker}]`"
            )


class MetricsLog:
    """`metrics.jsonl`: one object per line with `step` and `split`; a resumed run drops the lines after its state."""

    def __init__(self, path: Path, resume_step: int):
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, split: str, figures: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "split": split, **figures}) + "\n")


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file; a last line torn by a crash is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def draw_curves(metrics: Path, picture: Path) -> None:
    """One panel per figure over the steps, training and validation in one panel."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in read_metrics(metrics):
        for name, value in line.items():
            if name not in ("step", "split") and isinstance(value, int | float):
                curves[name][line["split"]].append((line["step"], value))
    if not curves:
        return
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (name, splits) in zip(panels, sorted(curves.items()), strict=False):
        for split, points in sorted(splits.items()):
            colour = "C0" if split == "train" else "C1"
            panel.plot(*zip(*points, strict=True), label=split, linewidth=1.2, color=colour)
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=90)
