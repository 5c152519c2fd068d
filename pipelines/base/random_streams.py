"""Random numbers that are pure functions of a key and a counter: no state to save, no order to keep.

Resuming, workers, processes and batch sizes cannot change a number that depends on its own position only. SplitMix64's
finaliser (Steele, Lea, Flood 2014) in wrapping 64-bit integers: the same on every machine and in every library version.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _stream(key: tuple[int | str, ...]) -> NDArray[np.uint64]:
    """One 64-bit stream number (shape (1,)) for a key such as (seed, "augment")."""
    stream = np.zeros(1, np.uint64)
    for part in key:
        word = zlib.crc32(part.encode()) if isinstance(part, str) else part % 2**64
        stream = _mix((stream + GOLDEN) ^ np.array([word], np.uint64))
    return stream


def bits(key: tuple[int | str, ...], counters: NDArray[np.int64], width: int) -> NDArray[np.uint64]:
    """(n, width) random 64-bit words; row i depends on the key and on counters[i] alone."""
    rows = _mix(_stream(key) + counters.astype(np.uint64) * GOLDEN)
    return _mix(rows[:, None] + np.arange(1, width + 1, dtype=np.uint64) * GOLDEN)


def uniforms(key: tuple[int | str, ...], counters: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    """(n, width) numbers in [0, 1), 53 bits each."""
    return (bits(key, counters, width) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: tuple[int | str, ...], length: int) -> NDArray[np.int64]:
    """A permutation of range(length) drawn by the key: the order of the rows' random words."""
    return np.argsort(bits(key, np.arange(length), 1)[:, 0], kind="stable")
