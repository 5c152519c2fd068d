"""Random numbers that are pure functions of a key and a counter: no state to save, no order to keep.

Resuming, workers, processes and batch sizes cannot change a number that depends on its own position only. The one
integer mixer is SplitMix64's (Steele, Lea, Flood 2014, https://doi.org/10.1145/2660193.2660195) in wrapping 64-bit
integers: the same on every machine and in every library version. A key is a tuple such as (seed, "augment").
"""

import zlib

import numpy as np
from numpy.typing import NDArray

Key = tuple[int | str, ...]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
WORD = 2**64 - 1
ROUNDS, ROUNDS_OF_SMALL = 8, 24  # of the Feistel network; 4 suffice for a large domain (Luby, Rackoff 1988)
SMALL = 16  # bits


def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: a permutation of the 64-bit integers, elementwise."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def mix_one(z: int) -> int:
    """`mix` of one number, without the cost of an array."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def _stream(key: Key) -> int:
    """One 64-bit stream number for a key such as (seed, "augment")."""
    stream = 0
    for part in key:
        word = zlib.crc32(part.encode()) if isinstance(part, str) else part & WORD
        stream = mix_one(((stream + int(GOLDEN)) & WORD) ^ word)
    return stream


def seed_of(key: Key) -> int:
    """A seed in [0, 2**64) for a generator, drawn by the key."""
    return mix_one(_stream(key))


def bits(key: Key, counters: NDArray[np.int64], width: int) -> NDArray[np.uint64]:
    """(n, width) random 64-bit words; row i depends on the key and on counters[i] alone."""
    rows = mix(np.uint64(_stream(key)) + counters.astype(np.uint64) * GOLDEN)
    return mix(rows[:, None] + np.arange(1, width + 1, dtype=np.uint64) * GOLDEN)


def uniforms(key: Key, counters: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    """(n, width) numbers in [0, 1), 53 bits each."""
    return (bits(key, counters, width) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation_at(key: Key, length: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Elements at `positions` of a permutation of range(length) drawn by the key, in memory of the size of `positions`.

    A Feistel network permutes the integers of just enough bits; a number beyond `length` is sent through again until it
    lies inside (cycle walking: Black, Rogaway 2002, section 3), less than twice on average.

    Raises:
        ValueError: a position outside 0 … length - 1, or a length beyond 2**62.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if not 0 <= length <= 2**62:
        raise ValueError(f"a permutation has 0 … 2**62 elements, got {length}")
    if positions.size and not (positions.min() >= 0 and positions.max() < length):
        raise ValueError(f"positions must lie in 0 … {length - 1}, got {positions.min()} … {positions.max()}")
    if length < 2:
        return np.zeros_like(positions)
    width = (length - 1).bit_length()
    rounds = bits(key, np.arange(1), ROUNDS_OF_SMALL if width <= SMALL else ROUNDS)[0]
    found = _feistel(positions.astype(np.uint64).reshape(-1), rounds, width)
    while len(outside := np.flatnonzero(found >= length)):
        found[outside] = _feistel(found[outside], rounds, width)
    return found.astype(np.int64).reshape(positions.shape)


def _feistel(x: NDArray[np.uint64], rounds: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """A permutation of the integers of `width` bits: each half in turn is changed by a function of the other."""
    low = np.uint64(width // 2)
    high = np.uint64(width) - low
    left, right = x >> low, x & ((np.uint64(1) << low) - np.uint64(1))
    for number, key in enumerate(rounds):
        if number % 2 == 0:
            left = left ^ (mix(key + right * GOLDEN) >> (np.uint64(64) - high))
        elif low:
            right = right ^ (mix(key + left * GOLDEN) >> (np.uint64(64) - low))
    return (left << low) | right
