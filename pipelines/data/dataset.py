"""What every source of images looks like to the rest of the house."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.progress import progress
from pipelines.data.augment import Augment
from pipelines.data.image_files import BROKEN, pixel_limit, reason
from pipelines.data.preprocess import Preprocess, apply

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Example:
    """One prepared image. `key` names it for a person and is stable; `factors` are ground truth where there is any."""

    key: str
    image: UInt8[Tensor, "c size size"]
    label: int | None = None
    text: str | None = None
    factors: dict[str, Any] | None = None


@dataclass(frozen=True)
class Unreadable:
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True)
class Facts:
    """What is known of a row beside its pixels."""

    key: str
    label: int | None = None
    text: str | None = None
    factors: dict[str, Any] | None = None


class FastPath(Protocol):
    """Many rows at once, from a source that holds uint8 pixels of one `shape` (c, h, w) in memory, or draws them.

    It is taken where preprocessing leaves such pixels alone, and must agree with `Source.read` bit for bit.
    """

    shape: tuple[int, int, int]

    def pixels(self, rows: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]: ...
    def labels(self, rows: Int64[Tensor, " n"]) -> Int64[Tensor, " n"] | None: ...
    def facts(self, rows: Int64[Tensor, " n"]) -> list[Facts]: ...


class Source(Protocol):
    """One split of one data set. `read` may raise any of BROKEN for a picture that cannot be decoded. Labels number the
    `classes`; where there are classes, every row that can be read has a label.
    """

    classes: list[str] | None
    provenance: dict[str, Any]
    fast: FastPath | None

    def __len__(self) -> int: ...
    def key(self, row: int) -> str: ...
    def read(self, row: int) -> tuple[Image.Image, Facts]: ...


@dataclass(frozen=True)
class Batch:
    """Rows read at once. `label` is None when the data has none. Unreadable rows are missing from both tensors; they
    are listed with their places in the request.
    """

    image: UInt8[Tensor, "n c size size"]
    label: Int64[Tensor, " n"] | None
    unreadable: list[tuple[int, Unreadable]]


class ImageDataset(torch.utils.data.Dataset):
    """A split, read through the recipe's preprocessing: `read(i)` never raises for what is wrong with an image.

    `rows` picks the rows of the source that belong to the split (None: all of them). `source` tells where the images
    came from, for the spec of a token dataset. `augment` and `workers` are the recipe's, for the loaders; reading
    never augments.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        max_pixels: int,
        rows: Int64[Tensor, " n"] | None = None,
        augment: Augment | None = None,
        workers: int = 0,
    ):
        self._source, self.preprocess, self.max_pixels, self._rows = source, preprocess, max_pixels, rows
        self.augment, self.workers = augment or Augment(), workers
        self.classes = source.classes
        self.source = {**source.provenance, "rows": len(self)}
        wanted = (preprocess.channels, preprocess.size, preprocess.size)
        self._fast = source.fast if source.fast is not None and source.fast.shape == wanted else None

    @property
    def is_fast(self) -> bool:
        """Whether images come finished from memory or a drawing, so that none can be unreadable."""
        return self._fast is not None

    def __len__(self) -> int:
        return len(self._source) if self._rows is None else len(self._rows)

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return index if self._rows is None else int(self._rows[index])

    def key(self, index: int) -> str:
        return self._source.key(self._row(index))

    def read(self, index: int) -> Example | Unreadable:
        row = self._row(index)
        if self._fast is not None:
            return self._read_fast(torch.tensor([row]))[0]
        try:
            with pixel_limit(self.max_pixels):
                image, facts = self._source.read(row)
                pixels = apply(image, self.preprocess)
        except BROKEN as error:
            return Unreadable(self._source.key(row), reason(error))
        return Example(facts.key, pixels, facts.label, facts.text, facts.factors)

    __getitem__ = read

    def __getitems__(self, indices: Sequence[int]) -> list[Example | Unreadable]:
        if self._fast is None:
            return [self.read(index) for index in indices]
        return [*self._read_fast(torch.tensor([self._row(index) for index in indices], dtype=torch.int64))]

    def _read_fast(self, rows: Tensor) -> list[Example]:
        assert self._fast is not None
        pairs = zip(self._fast.pixels(rows).unbind(), self._fast.facts(rows), strict=True)
        return [Example(f.key, image, f.label, f.text, f.factors) for image, f in pairs]

    def read_batch(self, indices: Int64[Tensor, " n"]) -> Batch:
        """Images and labels of many rows, by one gather or one drawing where the source can do that."""
        if self._fast is not None:
            rows = indices if self._rows is None else self._rows[indices]
            return Batch(self._fast.pixels(rows), self._fast.labels(rows), [])
        found = [self.read(i) for i in indices.tolist()]
        examples = [e for e in found if isinstance(e, Example)]
        size = (0, self.preprocess.channels, self.preprocess.size, self.preprocess.size)
        return Batch(
            torch.stack([e.image for e in examples]) if examples else torch.empty(size, dtype=torch.uint8),
            None if self.classes is None else torch.tensor([e.label for e in examples], dtype=torch.int64),
            [(place, e) for place, e in enumerate(found) if isinstance(e, Unreadable)],
        )

    def refuse_unreadable(self) -> None:
        """Decode every row once.

        Raises:
            UserError: naming the first ten rows that cannot be read.
        """
        with progress(len(self), "checking images", "image") as meter:
            bad = []
            for index in range(len(self)):
                if isinstance(found := self.read(index), Unreadable):
                    bad.append(found)
                meter.advance()
        if bad:
            more = f"\n  … and {len(bad) - 10} more" if len(bad) > 10 else ""
            raise UserError(
                f"{len(bad)} of {len(self):,} images cannot be read; mend them or set on_unreadable: skip"
                + "".join(f"\n  {unreadable}" for unreadable in bad[:10])
                + more
            )
