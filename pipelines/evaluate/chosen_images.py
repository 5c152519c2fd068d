"""Images that a user points at: rows of a split, or files."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.data import ImageDataset, Preprocess
from pipelines.data.dataset import Example, Unreadable
from pipelines.data.image_files import DECODE_ERRORS, open_image, reason
from pipelines.data.preprocess import prepare_image
from tokenizer import Autoencoder


@dataclass(frozen=True)
class ChosenImages:
    """Images, their labels (-1: none) and their captions (None: none)."""

    image: UInt8[Tensor, "n c h w"]
    label: Int64[Tensor, " n"]
    text: tuple[str | None, ...]

    def digest(self) -> str:
        """sha256 of pixels and labels."""
        return hashlib.sha256(self.image.numpy().tobytes() + self.label.numpy().tobytes()).hexdigest()


def choose_images(
    names: Sequence[str], preprocess: Preprocess, open_rows: Callable[[], ImageDataset], max_pixels: int = 50_000_000
) -> ChosenImages:
    """A whole number is a row of the split that `open_rows` opens, anything else the path of an image.

    Raises:
        UserError: no such row or file, or it cannot be read; as `open_rows`, which is called if a row is wanted.
    """
    rows = open_rows() if any(is_row(name) for name in names) else None
    found = [
        _row(rows, int(name)) if rows is not None and is_row(name) else _file(Path(name), preprocess, max_pixels)
        for name in names
    ]
    labels = [-1 if each.label is None else each.label for each in found]
    image = torch.stack([each.image for each in found])
    return ChosenImages(image, torch.tensor(labels), tuple(each.text for each in found))


def check_labels(model: Autoencoder, chosen: ChosenImages, names: Sequence[str]) -> None:
    """Raises UserError for an image without a label, which this model needs."""
    if not model.needs_labels:
        return
    for name, label in zip(names, chosen.label.tolist(), strict=True):
        if label < 0:
            what = f"row {name}" if is_row(name) else name
            raise UserError(f"{what}: has no label, and the model knows no image without one; expected a labelled row")


def is_row(name: str) -> bool:
    """Whether it names a row, and not a file."""
    return name.isascii() and name.isdigit()


def _row(images: ImageDataset, row: int) -> Example:
    if row >= len(images):
        raise UserError(f"row {row}: the split has {len(images):,} images, expected 0 to {len(images) - 1}")
    found = images.read(row)
    if isinstance(found, Unreadable):
        raise UserError(f"row {row}: cannot be read ({found})")
    return found


def _file(path: Path, preprocess: Preprocess, max_pixels: int) -> Example:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a row number or the path of an image")
    try:
        return Example(str(path), prepare_image(open_image(path, max_pixels), preprocess))
    except DECODE_ERRORS as error:
        raise UserError(f"{path}: cannot be read as an image ({reason(error)})") from error
