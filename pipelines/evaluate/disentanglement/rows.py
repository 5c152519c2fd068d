"""Rows of latents with the factors of their images, and which of them train and test a predictor."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipelines.base.random_streams import permutation_at

MAX_TRAIN, MAX_TEST = 10_000, 5_000  # num_train and num_test of disentanglement_lib's dci.gin and sap_score.gin


@dataclass(frozen=True)
class Rows:
    """latents: (n, d). factors: (n, f), values as integers."""

    latents: NDArray[np.float64]
    factors: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Self:
        return type(self)(self.latents[rows], self.factors[rows])

    def shuffled(self, seed: int) -> Self:
        """The same rows in an order drawn by the seed."""
        return self[permutation_at((seed, "disentanglement rows"), len(self), np.arange(len(self)))]

    def split(self) -> tuple[Self, Self]:
        """Rows to train and, after them, rows to test a predictor."""
        train = min(MAX_TRAIN, -(-2 * len(self) // 3))
        return self[:train], self[train : train + MAX_TEST]
