"""Do samples show their labels? A checker reads shapes back from pixels; other data needs a trained classifier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Int, UInt8
from torch import Tensor

from pipelines.base.distributed import gather, share_of
from pipelines.base.errors import UserError
from pipelines.data import DataConfig, Preprocess, Split, open_images, ordered_batches
from pipelines.data.shapes import ShapesConfig
from pipelines.data.shapes_checker import label_of
from pipelines.evaluate.classifier import load_classifier
from pipelines.evaluate.samples import Samples
from pipelines.tokens.facts import shortened

Checker = Callable[[UInt8[Tensor, "n c h w"]], Int[Tensor, " n"]]
IMAGES_AT_ONCE = 500


@dataclass(frozen=True)
class LabelAccuracy:
    """Share of `images` that show their label, also by class.

    `real_accuracy` is what the same `checker` finds on `real_images` held-out real images: the ceiling.
    """

    checker: str
    accuracy: float
    images: int
    real_accuracy: float
    real_images: int
    by_class: dict[str, float]


def checks_itself(data: DataConfig) -> bool:
    """Whether labels of this data can be read back from pixels: shapes in colour."""
    return isinstance(data.source, ShapesConfig) and data.preprocess.channels == 3 and data.binarize is None


def label_checker(
    data: DataConfig, classes: Sequence[str], classifier: str | Path | None, device: torch.device | str = "cpu"
) -> tuple[str, Checker]:
    """Name and function of the checker of this data: images -> class numbers, -1 where an image shows no class.

    Raises:
        UserError: the data needs a classifier and none is given, or the other way round, or the classifier was trained
            on other classes or on images of another size.
    """
    if checks_itself(data):
        if classifier is not None:
            raise UserError(f"found {classifier}, expected none: labels of shapes in colour are read from the pixels")
        return "shapes checker", check_shapes
    if classifier is None:
        raise UserError(
            "found none, expected the run of a classifier: labels of this data cannot be read from the pixels. "
            "`smalti train` trains one from a recipe of kind classifier"
        )
    loaded = load_classifier(classifier, device)
    if loaded.classes != tuple(classes):
        raise UserError(
            f"{loaded.folder}: was trained on the classes {shortened(loaded.classes)}; the samples have "
            f"{shortened(tuple(classes))}"
        )
    if _shape(loaded.preprocess) != _shape(data.preprocess):
        raise UserError(
            f"{loaded.folder}: was trained on images of {_shape(loaded.preprocess)}; the samples are of "
            f"{_shape(data.preprocess)}"
        )
    return "classifier", loaded


def _shape(prepared: Preprocess) -> str:
    return f"{prepared.size} x {prepared.size} {prepared.mode}"


def check_shapes(images: UInt8[Tensor, "n 3 h h"]) -> Int[Tensor, " n"]:
    """The class that each image shows, by the checker of the `shapes` data; -1 for no legible scene."""
    found = [label_of(image) for image in images]
    return torch.tensor([-1 if label is None else label for label in found], dtype=torch.int64)


def label_accuracy(
    samples: Samples,
    data: DataConfig,
    classifier: str | Path | None = None,
    split: Split = "test",
    max_images: int | None = None,
    accelerator: Accelerator | None = None,
) -> LabelAccuracy:
    """Check samples, and beside them those of the first `max_images` real images of a split that have a label. Every
    process takes its share.

    Raises:
        UserError: as `label_checker`; or a sample has no label.
    """
    if min(samples.labels) < 0:
        raise UserError("evaluate: found samples without a label, expected class-conditional ones")
    classes = samples.classes or []
    name, checker = label_checker(data, classes, classifier, accelerator.device if accelerator else "cpu")
    labels = torch.tensor(samples.labels)
    right = _right_samples(samples, checker, accelerator)
    by_class = {
        title: right[labels == number].float().mean().item()
        for number, title in enumerate(classes)
        if (labels == number).any()
    }
    real = _right_real_images(data, split, max_images, checker, accelerator)
    return LabelAccuracy(
        checker=name,
        accuracy=right.float().mean().item(),
        images=len(labels),
        real_accuracy=sum(real) / max(1, len(real)),
        real_images=len(real),
        by_class=by_class,
    )


def _right_samples(samples: Samples, checker: Checker, accelerator: Accelerator | None) -> Tensor:
    mine = share_of(range(len(samples.labels)), accelerator)
    shown: list[int] = []
    for start in range(0, len(mine), IMAGES_AT_ONCE):
        shown += checker(samples.read_images(mine[start : start + IMAGES_AT_ONCE])).tolist()
    return torch.tensor(gather(shown, accelerator)) == torch.tensor(samples.labels)


def _right_real_images(
    data: DataConfig, split: Split, max_images: int | None, checker: Checker, accelerator: Accelerator | None
) -> list[bool]:
    images = open_images(data, split)
    rows = range(len(images) if max_images is None else min(max_images, len(images)))
    right: list[bool] = []
    for batch in ordered_batches(images, share_of(rows, accelerator), IMAGES_AT_ONCE):
        if batch.label is not None:
            right += (checker(batch.image) == batch.label)[batch.label >= 0].tolist()
    return gather(right, accelerator)
