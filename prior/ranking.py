"""Ordering samples by their own likelihood."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prior.sampling import GenerationOutput


def order_by_likelihood(logprobs: Float[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """Indices of the images from the most to the least likely under the prior; equals keep their order."""
    return logprobs.sum(dim=-1).argsort(descending=True, stable=True)


def most_likely(output: GenerationOutput, count: int) -> GenerationOutput:
    """The `count` most likely images, most likely first. Raises ValueError when there are fewer."""
    if not 0 < count <= len(output.codes):
        raise ValueError(f"count must lie in 1..{len(output.codes)}, got {count}")
    kept = order_by_likelihood(output.logprobs)[:count]
    return GenerationOutput(torch.as_tensor(output.codes[kept]), output.logprobs[kept])
