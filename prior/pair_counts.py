"""How often each number of a huge range has occurred, in memory that follows the number of different ones."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

LARGEST_COUNT = 2**31 - 1


class PairCounts:
    """Counts of numbers in [0, size), in sorted blocks of int32 keys and int32 counts.

    A block covers a contiguous part of the range. What is added waits in its block until it is worth a merge, so that a
    merge needs little memory beyond one block: 8 bytes for each different number, and about half as much on top. Counts
    stop at 2^31 - 1.
    """

    def __init__(self, size: int):
        self.size = size
        self.block_size = max(2**20, min(-(-size // 64), 2**31 - 1))
        self.blocks = [_Block() for _ in range(-(-size // self.block_size))]

    def add(self, numbers: Int[Tensor, " t"]) -> None:
        """Count these numbers."""
        keys, counts = numbers.unique(return_counts=True)
        for index, part in self._parts(keys):
            self.blocks[index].add((keys[part] - index * self.block_size).int(), counts[part].int())

    def of(self, keys: Int[Tensor, " u"]) -> Int[Tensor, " u"]:
        """How often each of these sorted numbers has occurred."""
        found = torch.zeros_like(keys)
        for index, part in self._parts(keys):
            found[part] = self.blocks[index].of((keys[part] - index * self.block_size).int())
        return found

    def __iter__(self) -> Iterator[tuple[Int[Tensor, " u"], Int[Tensor, " u"]]]:
        """The numbers that have occurred, sorted, and their counts, block by block, both int64."""
        for index, block in enumerate(self.blocks):
            block.merge()
            yield block.keys.long() + index * self.block_size, block.counts.long()

    def _parts(self, keys: Int[Tensor, " u"]) -> Iterator[tuple[int, slice]]:
        """The blocks that sorted keys fall into, and which of the keys they are."""
        ends = torch.arange(1, len(self.blocks) + 1) * self.block_size
        start = 0
        for index, end in enumerate(torch.searchsorted(keys, ends).tolist()):
            if end > start:
                yield index, slice(start, end)
            start = end

    def to_tensors(self) -> dict[str, Tensor]:
        """The blocks that hold anything, as plain tensors."""
        tensors = {}
        for index, block in enumerate(self.blocks):
            block.merge()
            if len(block.keys):
                tensors |= {f"keys.{index}": block.keys, f"counts.{index}": block.counts}
        return tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `to_tensors` gave. Raises ValueError for blocks that do not belong to this range."""
        names = {f"{kind}.{index}" for kind in ("keys", "counts") for index in range(len(self.blocks))}
        if foreign := tensors.keys() - names:
            raise ValueError(f"found {min(foreign)!r}, expected keys and counts of {len(self.blocks)} blocks")
        for index, block in enumerate(self.blocks):
            keys, counts = (tensors.get(f"{kind}.{index}") for kind in ("keys", "counts"))
            if (keys is None) != (counts is None):
                raise ValueError(f"found only one of keys.{index} and counts.{index}, expected both or none")
            if keys is not None and counts is not None:
                block.load(keys, counts, min(self.block_size, self.size - index * self.block_size))


class _Block:
    """Sorted keys with their counts, and what waits to be merged into them."""

    def __init__(self):
        self.keys = torch.empty(0, dtype=torch.int32)
        self.counts = torch.empty(0, dtype=torch.int32)
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, keys: Int[Tensor, " u"], counts: Int[Tensor, " u"]) -> None:
        self.waiting.append((keys, counts))
        if sum(len(keys) for keys, _ in self.waiting) > max(2**14, len(self.keys) // 4):
            self.merge()

    def merge(self) -> None:
        if not self.waiting:
            return
        keys, counts = (torch.cat(parts) for parts in zip((self.keys, self.counts), *self.waiting, strict=True))
        self.waiting = []
        self.keys, inverse = keys.unique(return_inverse=True)
        totals = torch.zeros(len(self.keys), dtype=torch.long).index_add_(0, inverse, counts.long())
        self.counts = totals.clamp(max=LARGEST_COUNT).int()

    def of(self, keys: Int[Tensor, " u"]) -> Int[Tensor, " u"]:
        self.merge()
        if not len(self.keys):
            return torch.zeros(len(keys), dtype=torch.long)
        places = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[places] == keys, self.counts[places], 0).long()

    def load(self, keys: Tensor, counts: Tensor, limit: int) -> None:
        ordered = len(keys) > 0 and int(keys[0]) >= 0 and int(keys[-1]) < limit and bool((keys.diff() > 0).all())
        if keys.dtype != torch.int32 or counts.dtype != torch.int32 or keys.shape != counts.shape or not ordered:
            raise ValueError(f"expected sorted int32 keys below {limit} with int32 counts, found {keys.dtype} keys")
        self.keys, self.counts, self.waiting = keys, counts, []
