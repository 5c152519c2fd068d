"""Divergences between distributions over latents, in nats."""

from jaxtyping import Float
from torch import Tensor


def gaussian_kl(mean: Float[Tensor, "*shape"], log_variance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of every element, nats (arXiv 1312.6114, appendix B).

    Elementwise, so that the caller chooses what to sum: per image for the bound, per dimension for active units.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
