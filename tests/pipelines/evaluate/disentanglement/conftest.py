"""Stored latents of images whose factors are known."""

import numpy as np
import pytest

from pipelines.evaluate.disentanglement.rows import Rows

VALUES = (3, 4, 2)  # of each factor


def draw_rows(n: int, mix=None, noise: float = 0.0, seed: int = 0) -> Rows:
    """n rows with independent factors; latents are the factors, mixed by `mix` (3, d), and noise."""
    random = np.random.default_rng(seed)
    factors = np.stack([random.integers(0, values, n) for values in VALUES], axis=1)
    latents = (factors / np.array(VALUES)) @ (np.eye(3) if mix is None else np.asarray(mix, float))
    return Rows(latents + noise * random.normal(size=latents.shape), factors)


@pytest.fixture(scope="session")
def make_rows():
    return draw_rows
