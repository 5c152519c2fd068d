"""Batches for training, endless and resumable, and in order, for whatever must see every row exactly once."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.base.errors import UserError
from pipelines.data.augment import augment
from pipelines.data.dataset import Example, ImageDataset, Unreadable
from pipelines.data.sampler import batch_indices, positions


class _Steps(Dataset):
    """Item `step` is one rank's whole batch of that step, so that workers need nothing but the step."""

    def __init__(self, dataset: ImageDataset, seed: int, batch_size: int, rank: int, world: int):
        self.dataset, self.seed, self.batch_size, self.rank, self.world = dataset, seed, batch_size, rank, world

    def __getitem__(self, step: int) -> tuple[dict[str, Tensor], list[Unreadable]]:
        rows = batch_indices(self.seed, step, self.batch_size, len(self.dataset), self.rank, self.world)
        batch = self.dataset.read_batch(rows)
        unreadable = [bad for _, bad in batch.unreadable]
        if batch.unreadable:
            # The next readable row takes the place: what a place holds depends on the data only.
            rows = torch.tensor([self._replacement(int(row), unreadable) for row in rows])
            batch = self.dataset.read_batch(rows)
        places = positions(step, self.batch_size, self.rank, self.world)
        found = {"image": augment(batch.image, self.dataset.augment, self.seed, places)}
        if batch.label is not None:
            found["label"] = batch.label
        return found, unreadable

    def _replacement(self, row: int, unreadable: list[Unreadable]) -> int:
        for shift in range(len(self.dataset)):
            candidate = (row + shift) % len(self.dataset)
            if isinstance(found := self.dataset.read(candidate), Example):
                return candidate
            if shift:
                unreadable.append(found)
        raise UserError(f"none of the {len(self.dataset):,} images can be read; the first: {unreadable[0]}")


class TrainingLoader:
    """Iterates over {"image": uint8 (b, c, h, w), "label": int64 (b,) where the data has labels} of one rank.

    An unreadable row is warned of once, by its key.
    """

    def __init__(self, steps: Dataset, numbers: range, workers: int):
        self.length = len(numbers)
        self._loader = _loader(steps, numbers, workers)
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch, unreadable in self._loader:
            for bad in unreadable:
                if bad.key not in self._warned:
                    self._warned.add(bad.key)
                    warnings.warn(f"skipped an unreadable image: {bad}", stacklevel=2)
            yield batch


def training_loader(
    dataset: ImageDataset,
    seed: int,
    batch_size: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    workers: int | None = None,
) -> TrainingLoader:
    """Augmented batches of the steps from `start_step` up to `steps` (exclusive): what a run from step 0 would see.

    `batch_size` is that of all `world` processes together; each gets its contiguous slice. `workers` (default: the
    recipe's) are processes that read ahead; they change nothing but the speed.

    Raises:
        ValueError: the data set is empty, or batch_size is no multiple of world.
        UserError: while iterating, when not a single image can be read.
    """
    if not len(dataset):
        raise ValueError("cannot draw batches from an empty data set")
    positions(0, batch_size, rank, world)
    items = _Steps(dataset, seed, batch_size, rank, world)
    return TrainingLoader(items, range(start_step, steps), dataset.workers if workers is None else workers)


class _Blocks(Dataset):
    def __init__(self, dataset: ImageDataset, rows: Sequence[int], batch_size: int):
        self.dataset, self.rows, self.batch_size = dataset, rows, batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, block: int) -> list[Example | Unreadable]:
        begin = block * self.batch_size
        return self.dataset.__getitems__(self.rows[begin : begin + self.batch_size])


class OrderedLoader:
    """Iterates over lists of Examples, in order, each row once, unaugmented; `unreadable` collects what is left out."""

    def __init__(self, blocks: _Blocks, workers: int):
        self.unreadable: list[Unreadable] = []
        self._blocks = blocks
        self._loader = _loader(blocks, range(len(blocks)), workers)

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[list[Example]]:
        self.unreadable.clear()
        for block in self._loader:
            self.unreadable += [found for found in block if isinstance(found, Unreadable)]
            if examples := [found for found in block if isinstance(found, Example)]:
                yield examples


def ordered_loader(
    dataset: ImageDataset, rows: Sequence[int], batch_size: int, workers: int | None = None
) -> OrderedLoader:
    """The given rows in lists of at most `batch_size` examples: no padding, no duplicates. A list is shorter where rows
    cannot be read; one without any is left out.
    """
    return OrderedLoader(_Blocks(dataset, rows, batch_size), dataset.workers if workers is None else workers)


def stack(examples: Sequence[Example]) -> Tensor:
    """The images of some examples, (b, c, h, w) uint8."""
    return torch.stack([example.image for example in examples])


def _loader(items: Dataset, numbers: range, workers: int) -> DataLoader[Any]:
    """One item of `items` per batch. The generator of its own keeps the loader from drawing on the global one."""
    return DataLoader(
        items,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )


def _as_is(item: Any) -> Any:
    return item
