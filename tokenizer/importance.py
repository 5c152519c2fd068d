"""The likelihood of held-out images by importance sampling from the posterior."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.autoencoder import Autoencoder, Images, evaluating
from tokenizer.noise import Generators

DRAWS_PER_BLOCK = 250  # part of what a random stream means: another number gives other draws


@dataclass(frozen=True)
class LikelihoodBounds:
    """Upper bounds of -ln p(x) for each image, in nats.

    negative_elbo: the mean of -ln w over the draws, where w = p(x, z) / q(z | x). nll: -ln of the mean of w, which
    falls towards -ln p(x) as draws are added (Burda et al. 2016, arXiv 1509.00519, theorem 1).
    effective_draws: (Σ w)² / Σ w², between 1 and the number of draws; near 1 the bound is loose.
    """

    negative_elbo: Float[Tensor, " b"]
    nll: Float[Tensor, " b"]
    effective_draws: Float[Tensor, " b"]


@torch.no_grad()
def likelihood_bounds(
    model: Autoencoder,
    images: Images,
    draws: int,
    generators: Generators = None,
    condition: Tensor | None = None,
    at_once: int = DRAWS_PER_BLOCK,
) -> LikelihoodBounds:
    """Both bounds from `draws` latents of each image. Images are encoded once; latents are drawn in blocks, and
    `at_once` of a block are decoded in one pass, so that memory does not grow with their number. With one generator per
    image no figure depends on how images are batched.

    Raises:
        ValueError: the latent is not random, or draws or at_once is not positive.
    """
    for name, count in (("draws", draws), ("at_once", at_once)):
        if count < 1:
            raise ValueError(f"{name}: found {count}, expected at least 1")
    with evaluating(model):
        log_weights = model.importance_weights(images, condition)
        sums = _LogSums(len(images))
        for start in range(0, draws, DRAWS_PER_BLOCK):
            sums.add(log_weights(min(DRAWS_PER_BLOCK, draws - start), generators, at_once))
    return sums.bounds(draws)


class _LogSums:
    """Σ ln w, ln Σ w and ln Σ w² of each image, in float64."""

    def __init__(self, images: int):
        self.total = torch.zeros(images, dtype=torch.float64)
        self.log_sum = torch.full((images,), -math.inf, dtype=torch.float64)
        self.log_squares = self.log_sum.clone()

    def add(self, log_weights: Float[Tensor, "b k"]) -> None:
        found = log_weights.double().cpu()
        self.total += found.sum(1)
        self.log_sum = torch.logaddexp(self.log_sum, found.logsumexp(1))
        self.log_squares = torch.logaddexp(self.log_squares, (2 * found).logsumexp(1))

    def bounds(self, draws: int) -> LikelihoodBounds:
        nll = math.log(draws) - self.log_sum
        return LikelihoodBounds(-self.total / draws, nll, (2 * self.log_sum - self.log_squares).exp())
