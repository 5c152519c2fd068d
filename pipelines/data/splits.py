"""Carving validation and test rows out of the training rows of a data set that lacks them."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.base.errors import UserError
from pipelines.base.random_streams import permutation_at
from pipelines.data.source import Split


class RowNumbers(Protocol):
    """Row numbers of a source, ascending; indexed by an array of places. A numpy array of int64 is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: NDArray[np.int64], /) -> NDArray[np.int64]: ...


class RowsWithout:
    """range(length) without the rows `left_out` (ascending), in memory of the size of `left_out`."""

    def __init__(self, length: int, left_out: NDArray[np.int64]):
        self._length = length - len(left_out)
        self._kept_before = left_out - np.arange(len(left_out))  # how many kept rows stand before each that is left out

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return places + np.searchsorted(self._kept_before, places, side="right")


def carve_split(length: int, fractions: dict[Split, float], split: Split) -> RowNumbers:
    """Rows of `split`, ascending, where `length` training rows also have to serve the splits named in `fractions`.

    Each of those gets its share (at least one row) of one fixed permutation of the row numbers, training gets the rest.
    The three never overlap, and depend on the length and the fractions only. Memory is that of the carved rows.

    Raises:
        UserError: nothing would be left to train on.
    """
    shares = {name: max(1, round(fraction * length)) for name, fraction in fractions.items()}
    if sum(shares.values()) >= length:
        wanted = ", ".join(f"{name} {share}" for name, share in shares.items())
        raise UserError(f"data: {length} training images cannot be carved into {wanted} and something to train on")
    begin = 0
    for name, share in shares.items():
        if name == split:
            return np.sort(permutation_at(("carve",), length, np.arange(begin, begin + share)))
        begin += share
    return RowsWithout(length, np.sort(permutation_at(("carve",), length, np.arange(begin))))
