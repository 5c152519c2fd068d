"""The Gaussian with a full covariance over the flattened latent."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.noise import Generators, standard_normal
from tokenizer.standard_normal import StandardNormal


@dataclass
class FullGaussian:
    """N(mean, factor factorᵀ) over latents of n = d * h * w numbers. `factor` is lower triangular with a positive
    diagonal. float32.
    """

    mean: Float[Tensor, "b d h w"]
    factor: Float[Tensor, "b n n"]

    def sample(self, draws: int = 1, generator: Generators = None) -> Float[Tensor, "b k d h w"]:
        """`draws` latents of each image, with their gradient. `generator`: as in `Posterior`."""
        shape = len(self.mean), draws, *self.mean.shape[1:]
        noise = standard_normal(shape, generator, self.mean.device)
        with torch.autocast(self.mean.device.type, enabled=False):
            return self.mean[:, None] + (noise.flatten(2) @ self.factor.mT).view(shape)

    def log_prob(self, z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k"]:
        """ln q(z | x), nats."""
        centred = (z - self.mean[:, None]).flatten(2)
        noise = torch.linalg.solve_triangular(self.factor, centred.mT, upper=False)
        squared = (noise.square() + math.log(2 * math.pi)).sum(1)
        return -0.5 * squared - self._log_diagonal().sum(1, keepdim=True)

    def kl(self, prior: Any, z: Float[Tensor, "b d h w"] | None = None) -> tuple[Float[Tensor, "b 1 1 1"]] | None:
        """KL(q(z | x) || p(z)) in nats, one element, if the prior is the standard normal, otherwise None."""
        if not self.has_closed_form(prior):
            return None
        squares = self.factor.square().sum((1, 2)) + self.mean.square().sum((1, 2, 3))
        kl = 0.5 * (squares - self.factor.shape[1]) - self._log_diagonal().sum(1)
        return (kl[:, None, None, None],)

    def has_closed_form(self, prior: Any) -> bool:
        return isinstance(prior, StandardNormal)

    def detach(self) -> "FullGaussian":
        return FullGaussian(self.mean.detach(), self.factor.detach())

    def _log_diagonal(self) -> Float[Tensor, "b n"]:
        return self.factor.diagonal(dim1=1, dim2=2).log()
