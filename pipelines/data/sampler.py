"""Which rows make up which batch: pure functions of (seed, step), so that nothing needs saving in order to resume."""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from pipelines.base.random_streams import permutation_at

BLOCK = 4096  # elements of a permutation that are computed at once


@lru_cache(maxsize=8)
def _block(seed: int, epoch: int, length: int, block: int) -> NDArray[np.int64]:
    """Elements block * BLOCK … of the permutation of an epoch."""
    return permutation_at((seed, "epoch", epoch), length, np.arange(block * BLOCK, min((block + 1) * BLOCK, length)))


def _elements(seed: int, epoch: int, length: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Elements at ascending `places` of the permutation of an epoch."""
    blocks = range(int(places[0]) // BLOCK, int(places[-1]) // BLOCK + 1)
    return np.concatenate([_block(seed, epoch, length, block) for block in blocks])[places - blocks[0] * BLOCK]


def positions(step: int, batch_size: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """The places of one rank's share of a batch in the endless stream of examples: (batch_size / world,) int64.

    Rank r of W takes the r-th contiguous slice, so the ranks' shares, concatenated, are the batch of a single process.

    Raises:
        ValueError: batch_size, the global one, is not a positive multiple of world, or rank is not below world.
    """
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"batch_size is the global one and must be a multiple of the {world} processes, got {batch_size}"
        )
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0 … {world - 1}, got {rank}")
    share = batch_size // world
    return step * batch_size + rank * share + np.arange(share, dtype=np.int64)


def batch_indices(
    seed: int, step: int, batch_size: int, length: int, rank: int = 0, world: int = 1
) -> Int64[Tensor, " share"]:
    """Rows of the batch at `step`, of `batch_size` examples over all ranks, for this rank (batch_size / world of them).

    The stream of examples is one permutation of the `length` rows after the other, each a pure function of (seed,
    epoch). Batches cut it without gaps, so a batch may hold the end of one epoch and the beginning of the next. Memory
    does not grow with `length`.

    Raises:
        ValueError: the data set is empty, or `positions` refuses batch_size, rank and world.
    """
    if length < 1:
        raise ValueError("cannot draw batches from an empty data set")
    places = positions(step, batch_size, rank, world)
    epochs, within = np.divmod(places, length)
    rows = np.empty_like(places)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        rows[here] = _elements(seed, epoch, length, within[here])
    return torch.from_numpy(rows)
