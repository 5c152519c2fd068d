"""Figures while training: metrics.jsonl always, curves.png from it, and the trackers that the recipe asks for."""

import importlib.util
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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
    """`metrics.jsonl`: one object per line with `step` and `split`; a resumed run drops the lines after its state.

    A figure that is NaN or infinite is null: JSON has no word for it.
    """

    def __init__(self, path: Path, resume_step: int):
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step]
        write_text(path, "".join(_line(line) for line in kept))

    def write(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(_line({"step": step, "split": split, **figures}))


def finite_or_none(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures with None in place of NaN and infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(finite_or_none(content), allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file: {"step": int, "split": str, name: number or None}.

    What is not such a line is left out, such as the last one when a crash has torn it. So is any other value in a line.
    """
    lines = []
    for text in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and _is_count(found.get("step")) and isinstance(found.get("split"), str):
            known = {name: value for name, value in found.items() if name == "split" or _is_figure(value)}
            lines.append(finite_or_none(known))
    return lines


def _is_count(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, float) or _is_count(value)


def draw_curves(metrics: Path, picture: Path) -> None:
    """One panel per figure over the steps, training and validation in one panel."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in read_metrics(metrics):
        for name, value in line.items():
            if name not in ("step", "split") and value is not None:
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
