"""A mixture of Gaussians with independent elements, as a distribution over latents."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.noise import Generators, choices
from tokenizer.posteriors import DiagonalGaussian


@dataclass
class GaussianMixture:
    """p(z) = Σ weight_m N(z; mean_m, variance_m) over m components. float32."""

    log_weight: Float[Tensor, " m"]
    mean: Float[Tensor, "m d h w"]
    log_variance: Float[Tensor, "m d h w"]

    def log_prob(self, z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k"]:
        """ln p(z), summed over the elements of each latent, nats. Memory: b * k * m numbers."""
        # ln weight + ln N(z) is linear in z and z², so one product of matrices gives it for all draws and components.
        # In float32 its parts would cancel: a variance of e^-6 and a mean of 3 lose hundredths of a nat.
        mean, log_variance = self.mean.flatten(1).double(), self.log_variance.flatten(1).double()
        precision = (-log_variance).exp()
        constant = (mean.square() * precision + log_variance + math.log(2 * math.pi)).sum(1)
        flat = z.flatten(2).flatten(0, 1).double()
        log_joint = torch.addmm(
            self.log_weight - 0.5 * constant,
            torch.cat([flat.square(), flat], 1),
            torch.cat([-0.5 * precision, mean * precision], 1).T,
        )
        return log_joint.float().logsumexp(1).view(z.shape[:2])

    def sample(self, n: int, generator: Generators = None, temperature: float = 1.0) -> Float[Tensor, "n d h w"]:
        """n draws, float32, see `LatentDistribution`. The temperature is that of the components alone."""
        generator = generator or torch.default_generator
        component = choices(self.log_weight.detach().exp(), n, generator)
        log_variance = self.log_variance[component] + 2 * math.log(temperature)
        return DiagonalGaussian(self.mean[component], log_variance).sample(1, generator)[:, 0]
