"""A split of a recipe's data: rows of a source, prepared as the recipe says."""

import os
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.first_process import first_has_checked
from pipelines.base.progress import progress
from pipelines.base.random_streams import Key, permutation_at
from pipelines.data.augment import Augment
from pipelines.data.binarize import Binarize, binarize_rows
from pipelines.data.content_digest import ROWS_AT_ONCE, ContentDigest
from pipelines.data.decoding import Decoder
from pipelines.data.image_files import DECODE_ERRORS, reason
from pipelines.data.pixel_cache import PixelCache, pixel_cache
from pipelines.data.preprocess import Preprocess, prepare_image
from pipelines.data.source import Factors, ImageSource, RowMetadata, Split
from pipelines.data.splits import RowNumbers
from pipelines.data.unreadable_rows import UnreadableRows

CHECKED_AT_ONCE = 1024
FETCHED_AT_ONCE = 256  # encoded images in memory: they may be large
CANDIDATES_AT_ONCE = 64  # rows that may take the place of an unreadable one
LABELS_AT_ONCE = 100_000

# Images and labels (None: no classes) of some rows, and why some places hold nothing.
PixelsOfRows = tuple[UInt8[Tensor, "n c size size"], Int64[Tensor, " n"] | None, dict[int, str]]
Indices = Sequence[int] | NDArray[np.int64] | Int64[Tensor, " n"]


@dataclass(frozen=True)
class Example:
    """One prepared image and what is known of it, as in RowMetadata."""

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
class PixelBatch:
    """Rows read at once. Unreadable rows are missing from `image` and `label` (-1: none; None where the data has no
    classes); they are listed with their places in the request.
    """

    image: UInt8[Tensor, "n c size size"]
    label: Int64[Tensor, " n"] | None
    unreadable: list[tuple[int, Unreadable]]

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class ImageBatch(PixelBatch):
    """The same with what is known of each image in `image` beside its pixels."""

    metadata: list[RowMetadata]

    def split(self, rows: int) -> Iterator["ImageBatch"]:
        """Batches of `rows` consecutive rows of the request, the last one shorter."""
        requested = len(self) + len(self.unreadable)
        for start in range(0, requested, rows):
            stop = min(start + rows, requested)
            absent = [(place - start, bad) for place, bad in self.unreadable if start <= place < stop]
            first = start - sum(place < start for place, _ in self.unreadable)
            part = slice(first, first + stop - start - len(absent))
            label = None if self.label is None else self.label[part]
            yield ImageBatch(self.image[part], label, absent, self.metadata[part])


class ImageDataset:
    """A split, read through the recipe's preprocessing. Reading never raises for what is wrong with an image, and never
    augments.

    `rows` are the rows of the source that belong to the split (None: all of them). `provenance` says where the images
    come from, for the spec of a token dataset. `augment`, `workers` (decoding threads, 0: chosen), the budgets of the
    cache (0: none) and `binarize` are the recipe's. `split` names the random stream of images that are binarised once;
    the cache holds them grey.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocess: Preprocess,
        rows: RowNumbers | None = None,
        augment: Augment | None = None,
        workers: int = 0,
        cache_bytes: int = 0,
        cache_file_bytes: int = 0,
        binarize: Binarize | None = None,
        split: Split = "train",
    ):
        self._source, self.preprocess, self._rows = source, preprocess, rows
        self.augment, self._decoder = augment or Augment(), Decoder(preprocess, workers)
        self.binarize = binarize
        self._split: Split = split
        self.classes, self.has_text = source.classes, source.has_text
        self.provenance = {**source.provenance, "rows": len(self)}
        wanted = (preprocess.channels, preprocess.size, preprocess.size)
        self._array = source.array if source.array is not None and source.array.shape == wanted else None
        self._unreadable = UnreadableRows(len(source))
        self._cache: PixelCache | None = None
        if (cache_bytes or cache_file_bytes) and (self._array is None or not self._array.in_memory):
            identity = None if source.fingerprint is None else f"{source.fingerprint}\n{preprocess.model_dump_json()}"
            decoded = self._array is None
            self._cache = pixel_cache(identity, len(source), wanted, cache_bytes, cache_file_bytes, decoded)

    def __len__(self) -> int:
        return len(self._source) if self._rows is None else len(self._rows)

    @property
    def image_bytes(self) -> int:
        return self.preprocess.channels * self.preprocess.size**2

    @property
    def needs_decoding(self) -> bool:
        """False where finished pixels come from memory or a drawing, so that no image can be unreadable."""
        return self._array is None

    @property
    def binarized_anew(self) -> bool:
        """Whether training draws black and white pixels each time that it sees an image."""
        return self.binarize is not None and self.binarize.method == "dynamic"

    def key(self, index: int) -> str:
        return self._source.metadata(self._source_rows([index]).tolist())[0].key

    def factors(self, indices: Indices) -> Factors | None:
        """Ground truth of these rows as integers; None where the data has none. See `read_factors`."""
        return self._source.factors(self._source_rows(indices).tolist())

    def content_digest(self) -> str:
        """sha256 over all rows as they are stored, wherever that is: see `ContentDigest`."""
        digest = ContentDigest(len(self))
        for start in range(0, len(self), ROWS_AT_ONCE):
            rows = self._source_rows(range(start, min(start + ROWS_AT_ONCE, len(self))))
            contents = self._source.contents(rows.tolist())
            if contents is None:
                break
            digest.update(contents)
        return digest.hexdigest()

    def labelled(self) -> "ImageDataset":
        """The rows that have a label: this data set itself where all have one.

        Raises:
            UserError: none has.
        """
        parts = [np.empty(0, np.int64)]
        for start in range(0, len(self), LABELS_AT_ONCE):
            rows = self._source_rows(range(start, min(start + LABELS_AT_ONCE, len(self))))
            labels = self._source.labels(rows.tolist())
            parts.append(rows[:0] if labels is None else rows[labels.numpy() >= 0])
        rows = np.concatenate(parts)
        if not len(rows):
            raise UserError(f"data: none of the {len(self):,} images of {self.provenance} has a label")
        if len(rows) == len(self):
            return self
        found = copy(self)
        found._rows, found.provenance = rows, {**self.provenance, "rows": len(rows)}
        return found

    def read(self, index: int) -> Example | Unreadable:
        """One row, by itself: the reference for `read_batch`.

        Raises:
            IndexError: no such row.
        """
        rows = self._source_rows([index]).tolist()
        (known,) = self._source.metadata(rows)
        try:
            image = prepare_image(self._source.readers(rows)[0](), self.preprocess)
        except DECODE_ERRORS as error:
            return Unreadable(known.key, reason(error))
        image = self._binarized(image[None], np.array(rows))[0]
        return Example(known.key, image, known.label, known.text, known.factors)

    def read_pixels(self, indices: Indices, keep: bool = True) -> PixelBatch:
        """Images and labels of many rows at once. `keep` their pixels for the next time, if there is a cache."""
        images, labels, failures = self._read(rows := self._source_rows(indices), keep)
        return PixelBatch(*_kept(images, labels, failures), self._named(rows, failures))

    def read_batch(self, indices: Indices, keep: bool = True) -> ImageBatch:
        """Images, labels and metadata of many rows at once; `keep` as in `read_pixels`."""
        images, labels, failures = self._read(rows := self._source_rows(indices), keep)
        metadata = self._source.metadata(rows.tolist(), labels)
        known = [row for place, row in enumerate(metadata) if place not in failures] if failures else metadata
        return ImageBatch(*_kept(images, labels, failures), self._named(rows, failures), known)

    def read_replacing(
        self, indices: Indices, seed: int, places: NDArray[np.int64]
    ) -> tuple[PixelBatch, list[Unreadable]]:
        """As `read_pixels`, but random readable rows take the place of unreadable ones, so that the batch is whole, and
        images that training binarises anew each time are grey. Also the unreadable rows that were met.

        `places` are those of `indices` in the stream of examples. The substitute depends on the seed, the place and
        which rows can be read. It is drawn uniformly, and anew in every epoch, so that no row is seen more often.

        Raises:
            UserError: not a single row can be read.
        """
        read = self._read_prepared if self.binarized_anew else self._read
        images, labels, failures = read(rows := self._source_rows(indices))
        met = [bad for _, bad in self._named(rows, failures)]
        waiting = {at: self._substitutes((seed, "replace", int(places[at]))) for at in failures}
        while waiting:
            drawn = [row for candidates in waiting.values() for row in islice(candidates, 1)]
            if len(drawn) < len(waiting):
                raise UserError(f"none of the {len(self):,} images can be read; the first: {met[0]}")
            found, found_labels, failed = read(substitutes := np.array(drawn, dtype=np.int64))
            met += [bad for _, bad in self._named(substitutes, failed)]
            for number, at in enumerate(list(waiting)):
                if number not in failed:
                    images[at] = found[number]
                    if labels is not None and found_labels is not None:
                        labels[at] = found_labels[number]
                    del waiting[at]
        return PixelBatch(images, labels, []), met

    def _substitutes(self, key: Key) -> Iterator[int]:
        """All rows of the split that are not known to be unreadable, as rows of the source, in an order of the key."""
        for start in range(0, len(self), CANDIDATES_AT_ONCE):
            places = np.arange(start, min(start + CANDIDATES_AT_ONCE, len(self)))
            rows = self._source_rows(permutation_at(key, len(self), places))
            yield from rows[~self._unreadable.known(rows)].tolist()

    def check_readable(self) -> None:
        """Read rows until one can be read.

        Raises:
            UserError: none can.
        """
        first = None
        for start in range(0, len(self) if self.needs_decoding else 0, CHECKED_AT_ONCE):
            # One row first: that is enough for almost all data.
            for part in ([start], range(start + 1, min(start + CHECKED_AT_ONCE, len(self)))):
                batch = self.read_pixels(part)
                if len(batch):
                    return
                first = first or (batch.unreadable[0][1] if batch.unreadable else None)
        if first is not None:
            raise UserError(f"none of the {len(self):,} images can be read; the first: {first}")

    def check_all_readable(self) -> None:
        """Read every row once; with several processes the first one does, inside of `first_process`.

        Raises:
            UserError: naming the first ten rows that cannot be read.
        """
        if not self.needs_decoding or first_has_checked():
            return
        bad: list[Unreadable] = []
        first = os.environ.get("RANK", "0") == "0"
        with progress(len(self), "checking images", "image", visible=first) as meter:
            for start in range(0, len(self), CHECKED_AT_ONCE):
                rows = range(start, min(start + CHECKED_AT_ONCE, len(self)))
                bad += [unreadable for _, unreadable in self.read_pixels(rows).unreadable]
                meter.advance(len(rows))
        if bad:
            more = f"\n  … and {len(bad) - 10} more" if len(bad) > 10 else ""
            raise UserError(
                f"{len(bad)} of {len(self):,} images cannot be read; repair them or set on_unreadable: skip"
                + "".join(f"\n  {unreadable}" for unreadable in bad[:10])
                + more
            )

    def _source_rows(self, indices: Indices) -> NDArray[np.int64]:
        found = np.asarray(indices, dtype=np.int64)
        if len(found) and not (found.min() >= 0 and found.max() < len(self)):
            raise IndexError(f"rows {found.min()} … {found.max()} of {len(self)}")
        return found if self._rows is None else self._rows[found]

    def _read(self, rows: NDArray[np.int64], keep: bool = True) -> PixelsOfRows:
        """Rows of the source, binarised if the recipe says so."""
        images, labels, failures = self._read_prepared(rows, keep)
        return self._binarized(images, rows), labels, failures

    def _binarized(self, images: UInt8[Tensor, "n c h w"], rows: NDArray[np.int64]) -> UInt8[Tensor, "n c h w"]:
        return images if self.binarize is None else binarize_rows(images, self.binarize, self._split, rows)

    def _read_prepared(self, rows: NDArray[np.int64], keep: bool = True) -> PixelsOfRows:
        """Rows of the source: from the cache those that are there; the others are decoded, and kept."""
        cache = self._cache
        if cache is None:
            return self._read_source(rows)
        known = cache.known(rows)
        if known.all():
            images, labels = cache.get(rows)
            return images, None if self.classes is None else labels, {}
        if not keep and not known.any():
            return self._read_source(rows)
        missing, origin = np.unique(rows[~known], return_inverse=True)
        new, new_labels, failed = self._read_source(missing)
        if keep:
            good = [place for place in range(len(missing)) if place not in failed]
            numbers = [-1] * len(good) if new_labels is None else new_labels[good].tolist()
            cache.put(missing[good].tolist(), new[good] if failed else new, numbers)
        images, labels = new.new_empty((len(rows), *new.shape[1:])), torch.empty(len(rows), dtype=torch.int64)
        here = torch.from_numpy(known)
        images[here], labels[here] = cache.get(rows[known])
        images[~here] = new[torch.from_numpy(origin)]
        if new_labels is not None:
            labels[~here] = new_labels[torch.from_numpy(origin)]
        places = zip(np.flatnonzero(~known).tolist(), origin.tolist(), strict=True)
        failures = {place: failed[at] for place, at in places if at in failed}
        return images, None if self.classes is None else labels, failures

    def _read_source(self, rows: NDArray[np.int64]) -> PixelsOfRows:
        if self._array is not None:
            return self._array.pixels(torch.from_numpy(rows)), self._source.labels(rows.tolist()), {}
        images, labels, failures = self._decode(rows.tolist())
        self._unreadable.add({int(rows[place]): why for place, why in failures.items()})
        return images, labels, failures

    def _decode(self, listed: list[int]) -> PixelsOfRows:
        parts, failures = [], {}
        for start in range(0, max(1, len(listed)), FETCHED_AT_ONCE):
            part = listed[start : start + FETCHED_AT_ONCE]
            readers = self._source.readers(part)
            for place in np.flatnonzero(self._unreadable.known(np.array(part, dtype=np.int64))).tolist():
                readers[place] = partial(_fail, self._unreadable.reason(part[place]))
            images, failed = self._decoder(readers)
            parts.append(images)
            failures |= {start + place: why for place, why in failed.items()}
        images = torch.cat(parts) if len(parts) > 1 else parts[0]
        labels = self._source.labels(listed)  # afterwards: some sources learn them from the images' items
        return images, labels, failures

    def _named(self, rows: NDArray[np.int64], failures: dict[int, str]) -> list[tuple[int, Unreadable]]:
        known = self._source.metadata([int(rows[place]) for place in failures]) if failures else []
        pairs = zip(known, failures.items(), strict=True)
        return [(place, Unreadable(row.key, why)) for row, (place, why) in pairs]


def _kept(
    images: UInt8[Tensor, "n c size size"], labels: Int64[Tensor, " n"] | None, failures: dict[int, str]
) -> tuple[Tensor, Tensor | None]:
    """The images and labels without those of unreadable rows."""
    if not failures:
        return images, labels
    kept = [place for place in range(len(images)) if place not in failures]
    return images[kept], None if labels is None else labels[kept]


def _fail(why: str) -> Image.Image:
    """In place of decoding a row that is known to be unreadable."""
    raise ValueError(why)
