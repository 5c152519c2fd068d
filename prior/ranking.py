"""Ordering samples by how likely they are, or by how much their condition explains of them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prior.objective import sequence_logprobs
from prior.sampling import GenerationOutput
from prior.token_prior import TokenPrior

LOGITS_PER_PASS = 2**25  # 128 MiB


def order_by_likelihood(logprobs: Float[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """Indices of the images from the most to the least likely under the prior; equals keep their order."""
    return logprobs.sum(dim=-1).argsort(descending=True, stable=True)


def most_likely(output: GenerationOutput, count: int) -> GenerationOutput:
    """The `count` most likely images, most likely first. Raises ValueError when there are fewer."""
    if not 0 < count <= len(output.codes):
        raise ValueError(f"count must lie in 1..{len(output.codes)}, got {count}")
    kept = order_by_likelihood(output.logprobs)[:count]
    return GenerationOutput(torch.as_tensor(output.codes[kept]), output.logprobs[kept])


def likelihood_ratio(prior: TokenPrior, output: GenerationOutput) -> Float[Tensor, " b"]:
    """log p(image | condition) - log p(image) in nats, for images that were drawn under a condition.

    It is the pointwise mutual information of image and condition, and for images of one condition it orders them by
    log p(condition | image). The likelihood alone would favour images that are likely whatever the condition.

    Raises ValueError where the prior never saw the null condition, under which it gives log p(image).
    """
    if not prior.can_be_guided:
        raise ValueError(
            "the likelihood of an image alone needs a prior that was trained with condition_dropout > 0, this one has "
            f"condition_dropout={prior.config.condition_dropout}: its null condition was never trained"
        )
    rows = max(1, LOGITS_PER_PASS // (prior.vocabulary.code_length * prior.vocabulary.most_codes))
    alone = torch.cat([sequence_logprobs(prior, part) for part in output.codes.split(rows)])
    return (output.logprobs.double().sum(dim=-1) - alone.double().sum(dim=-1)).float()
