"""One random stream per image: the seed of each image of a call."""

import secrets
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.base.errors import UserError
from pipelines.base.random_streams import permutation_at

Seeds = int | Sequence[int] | torch.Generator | None


def image_seeds(generator: Seeds, n: int) -> list[int]:
    """The seed of each of n images: a list is taken as it is, an int s gives image i the seed f(s, i).

    f(s, .) permutes the 32-bit integers (PyTorch's CPU generator uses 32 bits of a seed), so no two images of a call
    share a stream, and image i is the same whatever n, batch size and number of processes.
    """
    match generator:
        case None:
            return image_seeds(secrets.randbits(63), n)
        case torch.Generator():
            device = generator.device
            return image_seeds(int(torch.randint(2**62, (), generator=generator, device=device)), n)
        case bool():
            raise UserError(f"generator: found {generator}, expected an int, a list of ints, a torch.Generator or None")
        case int():
            return seeds_at(generator, np.arange(n))
        case _:
            if len(generator) != n:
                raise UserError(f"generator: found {len(generator)} seeds, expected one for each of the {n} images")
            seeds = [int(seed) for seed in generator]
            if wrong := [seed for seed in seeds if not 0 <= seed < 2**64]:
                raise UserError(f"generator: found the seed {wrong[0]}, expected 0 to 2^64 - 1")
            return seeds


def seeds_at(seed: int, indices: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """What `image_seeds` gives the images of these numbers, which are below 2^32."""
    return permutation_at((seed, "image"), 2**32, np.asarray(indices, dtype=np.int64)).tolist()
