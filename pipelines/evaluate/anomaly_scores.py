"""How well scores of single images tell foreign ones from known ones."""

import csv
from collections.abc import Sequence
from io import StringIO

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.row_figures import RowFigures

SCORES = ("negative_elbo", "reconstruction_nll", "nll")  # larger is stranger; the last one found is the tightest


def area_under_curve(scores: NDArray[np.float64], foreign: NDArray[np.bool_]) -> float | None:
    """The area under the ROC curve: the probability that a foreign image has a larger score than a known one, where
    equal scores count half (Hanley, McNeil 1982). None if all images are of one kind.
    """
    count, others = int(foreign.sum()), int((~foreign).sum())
    if not count or not others:
        return None
    _, place, repeats = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(repeats) - (repeats - 1) / 2)[place]  # equal scores share their mean rank
    return float((ranks[foreign].sum() - count * (count + 1) / 2) / (count * others))


def scores_csv(
    found: Sequence[RowFigures], foreign: Sequence[bool] | None, names: Sequence[Sequence[str] | None]
) -> str:
    """A table of the images that could be read; `names` are those of the classes, for each image."""
    text, readable = StringIO(), [place for place, row in enumerate(found) if row.figures]
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["key", "label", "foreign", *found[readable[0]].figures])
    for place in readable:
        row, label, classes = found[place], found[place].label, names[place]
        title = "" if label is None else classes[label] if classes and 0 <= label < len(classes) else label
        kind = "" if foreign is None else int(foreign[place])
        table.writerow([row.key, title, kind, *(f"{value:.6g}" for value in row.figures.values())])
    return text.getvalue()
