"""The Gaussian with independent elements: the posterior of the plain VAE."""

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tokenizer.divergences import gaussian_kl
from tokenizer.noise import Generators, standard_normal
from tokenizer.standard_normal import StandardNormal


@dataclass
class DiagonalGaussian:
    """Independent normals, one for each element. float32."""

    mean: Float[Tensor, "b d h w"]
    log_variance: Float[Tensor, "b d h w"]

    def sample(self, draws: int = 1, generator: Generators = None) -> Float[Tensor, "b k d h w"]:
        """`draws` latents of each image, with their gradient (the reparameterisation, arXiv 1312.6114, equation 4).

        `generator`: one for the batch, one for each image, or torch's default (see `standard_normal`).
        """
        b, *rest = self.mean.shape
        noise = standard_normal((b, draws, *rest), generator, self.mean.device)
        return self.mean[:, None] + (0.5 * self.log_variance).exp()[:, None] * noise

    def log_prob(self, z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k"]:
        """ln q(z | x), summed over the elements of each latent, nats."""
        log_variance = self.log_variance[:, None]
        squared = (z - self.mean[:, None]).square() * (-log_variance).exp()
        return (-0.5 * (squared + log_variance + math.log(2 * math.pi))).sum(dim=(-3, -2, -1))

    def pairwise_log_prob(self, z: Float[Tensor, "n d h w"]) -> Float[Tensor, "n b elements"]:
        """ln q(z | x) of every element of every latent for every image of the batch, nats."""
        mean, log_variance = self.mean.flatten(1), self.log_variance.flatten(1)
        squared = (z.flatten(1)[:, None] - mean).square() * (-log_variance).exp()
        return -0.5 * (squared + log_variance + math.log(2 * math.pi))

    def kl(self, prior: Any, z: Float[Tensor, "b d h w"] | None = None) -> tuple[Float[Tensor, "b d h w"]] | None:
        """KL(q(z | x) || p(z)) of every element in nats if the prior is the standard normal, otherwise None."""
        if self.has_closed_form(prior):
            return (gaussian_kl(self.mean, self.log_variance),)
        return None

    def has_closed_form(self, prior: Any) -> bool:
        return isinstance(prior, StandardNormal)

    def detach(self) -> "DiagonalGaussian":
        return DiagonalGaussian(self.mean.detach(), self.log_variance.detach())
