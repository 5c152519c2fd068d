"""Ordering samples by their own likelihood."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prior.generate import Generated


def rank(logprobs: Float[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """Indices of the images from the most to the least likely under the prior; equals keep their order."""
    return logprobs.sum(dim=-1).argsort(descending=True, stable=True)


def most_likely(generated: Generated, count: int) -> Generated:
    """The `count` most likely images, most likely first. Raises ValueError when there are fewer."""
    if not 0 < count <= len(generated.codes):
        raise ValueError(f"count must lie in 1..{len(generated.codes)}, got {count}")
    kept = rank(generated.logprobs)[:count]
    return Generated(torch.as_tensor(generated.codes[kept]), generated.logprobs[kept])
