"""The variational mixture of posteriors (Tomczak & Welling 2018, arXiv 1705.07120)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tokenizer.latent_priors.gaussian_mixture import GaussianMixture
from tokenizer.latents import LatentDistribution, PosteriorOf
from tokenizer.noise import Generators, choices
from tokenizer.options import Options
from tokenizer.posteriors import DiagonalGaussian


class VampConfig(Options):
    """`pseudo_inputs` learned images.

    init_mean, init_std: of their pixels at the start, in [0, 1]. The defaults are those of the code of Exemplar VAE for
        MNIST and Fashion-MNIST. Outside [0, 1] a pixel gets no gradient.
    """

    conditional: ClassVar[bool] = False
    kind: Literal["vamp"] = "vamp"
    pseudo_inputs: int = Field(default=500, ge=1, examples=[7])
    init_mean: float = Field(default=0.05, gt=0, lt=1, examples=[0.5])
    init_std: float = Field(default=0.01, gt=0, le=1)


class VampPrior(nn.Module):
    """p(z) = mean of q(z | u) over learned images u (equation 9). `image_shape` is (c, H, W)."""

    def __init__(self, config: VampConfig, image_shape: tuple[int, int, int]):
        super().__init__()
        pixels = torch.empty(config.pseudo_inputs, *image_shape)
        self.pseudo_inputs = nn.Parameter(nn.init.normal_(pixels, config.init_mean, config.init_std))

    def distribution(self, posterior_of: PosteriorOf, condition: Tensor | None = None) -> LatentDistribution:
        images = self.pseudo_inputs.float().clamp(0, 1)
        posterior = posterior_of(images)
        if isinstance(posterior, DiagonalGaussian):
            log_weight = posterior.mean.new_full((len(images),), -math.log(len(images)))
            return GaussianMixture(log_weight, posterior.mean, posterior.log_variance)
        return PosteriorMixture(images, posterior_of)


@dataclass
class PosteriorMixture:
    """The mean of q(z | image) over `images`, for a posterior of any kind."""

    images: Float[Tensor, "m c h w"]
    posterior_of: PosteriorOf

    def __post_init__(self):
        self.posterior = self.posterior_of(self.images)

    def log_prob(self, z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k"]:
        """ln p(z), summed over the elements of each latent, nats. Memory: b * k * m latents."""
        draws = z.flatten(0, 1).expand(len(self.images), -1, -1, -1, -1)
        log_prob = torch.logsumexp(self.posterior.log_prob(draws), 0) - math.log(len(self.images))
        return log_prob.view(z.shape[:2])

    def sample(self, n: int, generator: Generators = None, temperature: float = 1.0) -> Float[Tensor, "n d h w"]:
        """n draws, float32, see `LatentDistribution`. The temperature is that of the posteriors alone:
        draws move towards the mean of theirs.
        """
        generator = generator or torch.default_generator
        chosen = choices(self.images.new_ones(len(self.images)), n, generator)
        posterior = self.posterior_of(self.images[chosen])
        z = posterior.sample(1, generator)[:, 0]
        return z if temperature == 1 else posterior.mean + temperature * (z - posterior.mean)
