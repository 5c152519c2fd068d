"""How often each number of a huge range has occurred, in memory that follows the number of different ones."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

BUFFER = 2**21
"""Numbers that wait to be counted together."""
LARGEST_COUNT = 2**31 - 1


class PairCounts:
    """Counts of numbers in [0, size), in blocks of sorted int32 keys and int32 counts.

    A block covers a contiguous part of the range and is merged by itself, so that a merge needs little memory on top of
    the 8 bytes for each different number. Counts stop at 2^31 - 1.
    """

    def __init__(self, size: int):
        self.size = size
        self.block_size = max(2**20, min(-(-size // 64), 2**31 - 1))
        empty = torch.empty(0, dtype=torch.int32)
        self.blocks: list[tuple[Tensor, Tensor]] = [(empty, empty)] * -(-size // self.block_size)
        self._buffer: list[Tensor] = []

    def add(self, numbers: Int[Tensor, " t"]) -> None:
        """Count these numbers."""
        self._buffer.append(numbers)
        if sum(len(numbers) for numbers in self._buffer) >= BUFFER:
            self._merge()

    def of(self, keys: Int[Tensor, " u"]) -> Int[Tensor, " u"]:
        """How often each of these sorted numbers has occurred."""
        self._merge()
        found = torch.zeros_like(keys)
        for index, part in self._parts(keys):
            known, counts = self.blocks[index]
            if len(known):
                wanted = (keys[part] - index * self.block_size).int()
                places = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
                found[part] = torch.where(known[places] == wanted, counts[places], 0).long()
        return found

    def __iter__(self) -> Iterator[tuple[Int[Tensor, " u"], Int[Tensor, " u"]]]:
        """The numbers that have occurred, sorted, and their counts, block by block, both int64."""
        self._merge()
        for index, (keys, counts) in enumerate(self.blocks):
            yield keys.long() + index * self.block_size, counts.long()

    def to_tensors(self) -> dict[str, Tensor]:
        """The blocks that hold anything, as plain tensors."""
        self._merge()
        tensors = {}
        for index, (keys, counts) in enumerate(self.blocks):
            if len(keys):
                tensors |= {f"keys.{index}": keys, f"counts.{index}": counts}
        return tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `to_tensors` gave. Raises ValueError for blocks that do not belong to this range."""
        names = {f"{kind}.{index}" for kind in ("keys", "counts") for index in range(len(self.blocks))}
        if foreign := tensors.keys() - names:
            raise ValueError(f"found {min(foreign)!r}, expected keys and counts of {len(self.blocks)} blocks")
        for index in range(len(self.blocks)):
            keys, counts = (tensors.get(f"{kind}.{index}") for kind in ("keys", "counts"))
            if (keys is None) != (counts is None):
                raise ValueError(f"found only one of keys.{index} and counts.{index}, expected both or none")
            if keys is not None and counts is not None:
                _check_block(keys, counts, min(self.block_size, self.size - index * self.block_size))
                self.blocks[index] = keys, counts

    def _merge(self) -> None:
        """Count what waits in the buffer."""
        if not self._buffer:
            return
        added, occurrences = torch.cat(self._buffer).unique(return_counts=True)
        self._buffer = []
        for index, part in self._parts(added):
            known, counts = self.blocks[index]
            keys, inverse = torch.cat([known, (added[part] - index * self.block_size).int()]).unique(
                return_inverse=True
            )
            totals = torch.zeros(len(keys), dtype=torch.long)
            totals.index_add_(0, inverse, torch.cat([counts.long(), occurrences[part]]))
            self.blocks[index] = keys, totals.clamp(max=LARGEST_COUNT).int()

    def _parts(self, keys: Int[Tensor, " u"]) -> Iterator[tuple[int, slice]]:
        """The blocks that sorted keys fall into, and which of the keys they are."""
        ends = torch.arange(1, len(self.blocks) + 1) * self.block_size
        start = 0
        for index, end in enumerate(torch.searchsorted(keys, ends).tolist()):
            if end > start:
                yield index, slice(start, end)
            start = end


def _check_block(keys: Tensor, counts: Tensor, limit: int) -> None:
    right = keys.dtype == counts.dtype == torch.int32 and keys.shape == counts.shape and len(keys) > 0
    if not right or int(keys[0]) < 0 or int(keys[-1]) >= limit or not bool((keys.diff() > 0).all()):
        raise ValueError(f"expected sorted int32 keys below {limit} with int32 counts, found others")
