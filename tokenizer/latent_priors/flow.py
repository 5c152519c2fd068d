"""A normalizing flow as the latent prior (Chen et al. 2017, arXiv 1611.02731)."""

import math
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Generator, Tensor, nn

from tokenizer.flows import Flow, FlowKind, Widths
from tokenizer.latents import PosteriorOf
from tokenizer.noise import standard_normal
from tokenizer.options import Options


class FlowConfig(Options):
    """`flow`, `transforms` and `widths` are those of `tokenizer.flows.Flow`.

    All give a density in one pass; a sample costs as many passes as the latent has numbers, or with "coupling" one.
    """

    kind: Literal["flow"] = "flow"
    flow: FlowKind = "masked_autoregressive"
    transforms: int = Field(default=3, ge=1, le=1000)
    widths: Widths = (128, 128)


class FlowPrior(nn.Module):
    """The flow maps latents of shape (d, h, w), flattened, to N(0, 1)."""

    def __init__(self, config: FlowConfig, shape: tuple[int, int, int]):
        super().__init__()
        self.shape, self.size = shape, math.prod(shape)
        self.flow = Flow(config.flow, self.size, config.transforms, config.widths)

    def distribution(self, posterior_of: PosteriorOf) -> "FlowPrior":
        return self

    def log_prob(self, z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k"]:
        """ln p(z), summed over the elements of each latent, nats. float32."""
        noise, log_determinant = self.flow(z.flatten(2))
        return log_determinant - 0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, n: int, generator: Generator | None = None) -> Float[Tensor, "n d h w"]:
        """n draws, float32. Random numbers come from the generator's device (the CPU without one)."""
        noise = standard_normal((n, self.size), generator).to(next(self.flow.parameters()).device)
        z, _ = self.flow(noise, inverse=True)
        return z.view(n, *self.shape)
