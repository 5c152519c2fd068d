"""q(z | x) of the continuous family."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.divergences import gaussian_kl
from tokenizer.latent_priors import StandardNormal
from tokenizer.noise import Generators, standard_normal


@runtime_checkable
class Posterior(Protocol):
    """A distribution over latents for each image of a batch. Draws have the shape (b, k, d, h, w)."""

    @property
    def mean(self) -> Float[Tensor, "b d h w"]: ...

    def sample(self, draws: int, generator: Generators = None) -> Float[Tensor, "b k d h w"]: ...

    def log_prob(self, z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k"]: ...

    def kl(self, prior: nn.Module) -> Float[Tensor, " b"] | None: ...


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

    def kl(self, prior: nn.Module) -> Float[Tensor, " b"] | None:
        """KL(q(z | x) || p(z)) of each image in nats where it has a closed form, otherwise None."""
        if isinstance(prior, StandardNormal):
            return gaussian_kl(self.mean, self.log_variance).sum(dim=(1, 2, 3))
        return None
