"""What the sources have in common whose images are drawn on demand."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from pipelines.data.source import PixelArray, Reader, Split


class SplitSizes(Protocol):
    """How many images each split has."""

    @property
    def train(self) -> int: ...

    @property
    def validation(self) -> int: ...

    @property
    def test(self) -> int: ...


class DrawnSource(ABC):
    """A split of images with captions, drawn at `size` pixels. It is its own array of pixels."""

    has_text = True
    in_memory = False

    def __init__(self, sizes: SplitSizes, split: Split, size: int):
        self.rows = {"train": sizes.train, "validation": sizes.validation, "test": sizes.test}[split]
        self.split: Split = split
        self.shape: tuple[int, int, int] = (3, size, size)
        self.array: PixelArray | None = self

    def __len__(self) -> int:
        return self.rows

    def contents(self, rows: Sequence[int]) -> None:
        return None

    def readers(self, rows: Sequence[int]) -> list[Reader]:
        return [lambda row=row: self._image(row) for row in rows]

    def _image(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels(torch.tensor([row]))[0].permute(1, 2, 0).numpy())

    @abstractmethod
    def pixels(self, rows: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 3 size size"]: ...
