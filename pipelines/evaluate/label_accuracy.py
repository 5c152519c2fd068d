"""Are labels obeyed? The shapes checker reads the picture back where it can, else a trained classifier judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.data import DataConfig, Split, open_images, ordered_batches
from pipelines.data.shapes import ShapesConfig
from pipelines.data.shapes_checker import label_of
from pipelines.evaluate.classifier import load_classifier

Judge = Callable[[UInt8[Tensor, "n c h w"]], Int[Tensor, " n"]]


@dataclass(frozen=True)
class LabelAccuracy:
    """Share of `images` that show their label, also by class; `real_accuracy` is what the same `judge` says of
    `real_images` held-out real images: the ceiling."""

    judge: str
    accuracy: float
    images: int
    real_accuracy: float
    real_images: int
    by_class: dict[str, float]


def label_judge(data: DataConfig, classes: Sequence[str], classifier: str | Path | None) -> tuple[str, Judge]:
    """Name and function of the judge for this data: images -> class numbers, -1 for what is nothing.

    Raises:
        UserError: the data is not `shapes` and no classifier is given, or the classifier tells other classes apart.
    """
    if isinstance(data.source, ShapesConfig):
        return "shapes checker", check_shapes
    if classifier is None:
        raise UserError("evaluate: labels of this data need a classifier; train one with train_classifier")
    judge = load_classifier(classifier)
    if judge.classes != tuple(classes):
        raise UserError(f"{judge.folder}: tells {judge.classes} apart, the samples have {tuple(classes)}")
    return "classifier", judge


def check_shapes(images: UInt8[Tensor, "n 3 h h"]) -> Int[Tensor, " n"]:
    """The class that each picture shows, by the checker of the `shapes` data; -1 for no legible scene."""
    found = [label_of(image) for image in images]
    return torch.tensor([-1 if label is None else label for label in found])


def label_accuracy(
    images: UInt8[Tensor, "n c h w"],
    labels: Sequence[int],
    classes: Sequence[str],
    data: DataConfig,
    classifier: str | Path | None = None,
    split: Split = "test",
    limit: int | None = None,
) -> LabelAccuracy:
    """Judge generated images, and the first `limit` real ones of a split beside them.

    Raises:
        UserError: as `label_judge`; or an image has no label.
    """
    if min(labels) < 0:
        raise UserError("evaluate: found samples without a label, expected class-conditional ones")
    name, judge = label_judge(data, classes, classifier)
    wanted = torch.tensor(labels)
    right = judge(images) == wanted
    by_class = {
        title: right[wanted == number].float().mean().item()
        for number, title in enumerate(classes)
        if (wanted == number).any()
    }
    real = open_images(data, split)
    seen = good = 0
    for batch in ordered_batches(real, range(min(limit or len(real), len(real))), 500):
        good += int((judge(batch.image) == batch.label).sum())
        seen += len(batch)
    return LabelAccuracy(name, right.float().mean().item(), len(labels), good / max(1, seen), seen, by_class)
