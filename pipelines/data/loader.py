"""Batches for training, endless and resumable, and in order, for whatever must see every row exactly once."""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pipelines.base.errors import DataWarning
from pipelines.data.augment import augment
from pipelines.data.binarize import draw_binary
from pipelines.data.dataset import ImageBatch, ImageDataset, Unreadable
from pipelines.data.read_ahead import batches_per_chunk, read_ahead
from pipelines.data.sampler import batch_indices, positions

TensorBatch = dict[str, Tensor]


class TrainingLoader:
    """Iterates over {"image": uint8 (b, c, h, w), "label": int64 (b,) where the data has classes} of one rank. A
    label is -1 where a row has none.

    An unreadable row is warned of once, by its key.
    """

    def __init__(self, dataset: ImageDataset, seed: int, batch_size: int, steps: range, rank: int, world: int):
        self.dataset, self.seed, self.steps = dataset, seed, steps
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[TensorBatch]:
        share = self.batch_size // self.world
        size = batches_per_chunk(share, self.dataset.image_bytes)
        chunks = (self.steps[start : start + size] for start in range(0, len(self.steps), size))
        for chunk, unreadable in read_ahead(self._read, chunks):
            self._warn(unreadable)
            for start in range(0, len(chunk["image"]), share):
                yield {name: value[start : start + share] for name, value in chunk.items()}

    def _read(self, steps: range) -> tuple[TensorBatch, list[Unreadable]]:
        """The batches of some steps, one after the other in one tensor, and the unreadable rows among them."""
        where = (self.batch_size, self.rank, self.world)
        rows = torch.cat([batch_indices(self.seed, step, where[0], len(self.dataset), *where[1:]) for step in steps])
        places = torch.cat([torch.from_numpy(positions(step, *where)) for step in steps]).numpy()
        batch, unreadable = self.dataset.read_replacing(rows, self.seed, places)
        images = augment(batch.image, self.dataset.augment, self.seed, places)
        if self.dataset.binarized_anew:
            images = draw_binary(images, (self.seed, "binarize"), places)
        found = {"image": images}
        if batch.label is not None:
            found["label"] = batch.label
        if torch.cuda.is_available():
            found = {name: value.pin_memory() for name, value in found.items()}
        return found, unreadable

    def _warn(self, unreadable: list[Unreadable]) -> None:
        for bad in unreadable:
            if bad.key not in self._warned:
                self._warned.add(bad.key)
                warnings.warn(f"skipped an unreadable image: {bad}", DataWarning, stacklevel=3)


def training_loader(
    dataset: ImageDataset,
    seed: int,
    batch_size: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
) -> TrainingLoader:
    """Augmented batches of the steps from `start_step` up to `steps` (exclusive): what a run from step 0 would see.

    `batch_size` is that of all `world` processes together; each gets its contiguous slice.

    Raises:
        ValueError: the data set is empty, or batch_size is no multiple of world.
        UserError: while iterating, when not a single image can be read.
    """
    if not len(dataset):
        raise ValueError("cannot draw batches from an empty data set")
    positions(0, batch_size, rank, world)
    return TrainingLoader(dataset, seed, batch_size, range(start_step, steps), rank, world)


def ordered_batches(
    dataset: ImageDataset,
    rows: Sequence[int],
    batch_size: int,
    keep_empty: bool = False,
    keep_pixels: bool = True,
    beside: bool | None = None,
) -> Iterator[ImageBatch]:
    """The given rows of the data set in their order, unaugmented, in batches of `batch_size` rows: no padding, no
    duplicates.

    A batch is shorter where rows cannot be read; they are listed in its `unreadable`. One without any image is left out
    unless `keep_empty`. `keep_pixels`: for the next time these rows are read, if the data has a cache. Rows are read in
    chunks of several batches; `beside` is that of `read_ahead`.
    """
    size = batch_size * batches_per_chunk(batch_size, dataset.image_bytes)
    chunks = (rows[start : start + size] for start in range(0, len(rows), size))
    for chunk in read_ahead(partial(dataset.read_batch, keep=keep_pixels), chunks, beside):
        yield from (batch for batch in chunk.split(batch_size) if len(batch) or keep_empty)
