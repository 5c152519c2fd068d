"""The standard normal: the prior of the plain VAE (arXiv 1312.6114)."""

import math

from jaxtyping import Float
from torch import Generator, Tensor, nn

from tokenizer.latents import PosteriorOf
from tokenizer.noise import Generators, standard_normal


class StandardNormal(nn.Module):
    """Independent N(0, 1) in every element of a latent of shape (d, h, w)."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape

    def distribution(self, posterior_of: PosteriorOf, condition: Tensor | None = None) -> "StandardNormal":
        return self

    def log_prob(self, z: Float[Tensor, "*n d h w"]) -> Float[Tensor, "*n"]:
        """ln p(z), summed over the elements of each latent, nats."""
        return (-0.5 * (z.float().square() + math.log(2 * math.pi))).sum(dim=(-3, -2, -1))

    def sample(self, n: int, generator: Generators = None, temperature: float = 1.0) -> Float[Tensor, "n d h w"]:
        """n draws, float32, on the device of a single generator (otherwise the CPU). See `LatentDistribution`."""
        device = generator.device if isinstance(generator, Generator) else "cpu"
        return temperature * standard_normal((n, *self.shape), generator, device)
