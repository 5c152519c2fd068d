"""What every source of images gives: rows of images, and what is known of each row beside its pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Reader = Callable[[], Image.Image]


@dataclass(frozen=True)
class RowMetadata:
    """What is known of a row beside its pixels. `key` names it for a person and is stable; `label` numbers the classes;
    `factors` are ground truth where there is any.
    """

    key: str
    label: int | None = None
    text: str | None = None
    factors: dict[str, Any] | None = None


@dataclass(frozen=True)
class RowContent:
    """What tells a row from another one without decoding it: its `columns` (plain JSON), and its encoded `picture`, as
    bytes or as the path of a file (None: neither can be had).
    """

    columns: list[Any]
    picture: bytes | str | None


@dataclass(frozen=True)
class Factors:
    """Ground truth of some rows: column j of `values` (n, f) numbers the `sizes[j]` values of the factor `names[j]`."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    values: NDArray[np.int64]


class PixelArray(Protocol):
    """Finished uint8 pixels of one `shape` (c, h, w), many rows at once: held in memory, or drawn on demand.

    It is used where preprocessing leaves pixels of this shape alone, and agrees with `ImageSource.readers` bit for bit.
    """

    shape: tuple[int, int, int]
    in_memory: bool

    def pixels(self, rows: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]: ...


class ImageSource(Protocol):
    """One split of one data set, addressed by row numbers.

    Labels number the `classes`; some rows may have none, but in a source with classes not all. `has_text` tells whether
    rows may have a text. `provenance` is plain JSON that says where the rows come from. `fingerprint` changes
    when the images do; None where that is not known.
    """

    classes: list[str] | None
    has_text: bool
    provenance: dict[str, Any]
    array: PixelArray | None

    @property
    def fingerprint(self) -> str | None: ...

    def __len__(self) -> int: ...

    def metadata(self, rows: Sequence[int], labels: Int64[Tensor, " n"] | None = None) -> list[RowMetadata]:
        """Keys, labels, texts and factors; nothing is decoded where the source can tell them without. `labels` where
        the caller has them.
        """
        ...

    def labels(self, rows: Sequence[int]) -> Int64[Tensor, " n"] | None:
        """The classes of these rows, -1 for a row without one; None where the source has no classes."""
        ...

    def factors(self, rows: Sequence[int]) -> Factors | None:
        """The ground truth of these rows as integers; None where the source has none."""
        ...

    def contents(self, rows: Sequence[int]) -> list[RowContent] | None:
        """What tells these rows from others; nothing is decoded. None where the options of the source say it all."""
        ...

    def readers(self, rows: Sequence[int]) -> list[Reader]:
        """One function a row that decodes its image. Any thread may call it. It may raise any of DECODE_ERRORS."""
        ...


class ImageSplits(Protocol):
    """The splits of one data set."""

    def find(self, split: Split) -> ImageSource | None:
        """The split, or None where the data set has no such split. There is always a train split, or UserError."""
        ...
