"""p(z) of the continuous family: what the posterior is compared with, and where new latents come from."""

import math

from jaxtyping import Float
from torch import Generator, Tensor, nn

from tokenizer.noise import standard_normal


class StandardNormal(nn.Module):
    """Independent N(0, 1) in every element of a latent of shape (d, h, w)."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape

    def log_prob(self, z: Float[Tensor, "*n d h w"]) -> Float[Tensor, "*n"]:
        """ln p(z), summed over the elements of each latent, nats."""
        return (-0.5 * (z.float().square() + math.log(2 * math.pi))).sum(dim=(-3, -2, -1))

    def sample(self, n: int, generator: Generator | None = None) -> Float[Tensor, "n d h w"]:
        """n draws, float32, on the generator's device (the CPU without one)."""
        return standard_normal((n, *self.shape), generator, "cpu" if generator is None else generator.device)
