"""A normalizing flow as the latent prior (Chen et al. 2017, arXiv 1611.02731)."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tokenizer.flows import Flow, FlowKind, Widths
from tokenizer.latents import PosteriorOf
from tokenizer.noise import Generators, standard_normal
from tokenizer.options import Options


class FlowConfig(Options):
    """`flow`, `transforms` and `widths` are those of `tokenizer.flows.Flow`.

    All give a density in one pass; a sample costs as many passes as the latent has numbers, or with "coupling" one.

    conditional: each label of the model's condition has a prior p(z | label) of its own (Sohn et al. 2015, NeurIPS,
        equation 4). Without it posteriors of different labels must share one.
    """

    kind: Literal["flow"] = "flow"
    flow: FlowKind = "masked_autoregressive"
    transforms: int = Field(default=3, ge=1, le=1000)
    widths: Widths = (128, 128)
    conditional: bool = False


class FlowPrior(nn.Module):
    """The flow maps latents of shape (d, h, w), flattened, to N(0, 1). It may depend on `condition_dim` numbers."""

    def __init__(self, config: FlowConfig, shape: tuple[int, int, int], condition_dim: int = 0):
        super().__init__()
        self.config, self.shape, self.size = config, shape, math.prod(shape)
        context = condition_dim if config.conditional else 0
        self.flow = Flow(config.flow, self.size, config.transforms, config.widths, context)

    def distribution(
        self, posterior_of: PosteriorOf, condition: Float[Tensor, "#b c"] | None = None
    ) -> "FlowDistribution":
        """Raises ValueError for a conditional prior without a condition."""
        if not self.config.conditional:
            return FlowDistribution(self, None)
        if condition is None:
            raise ValueError("condition: found none, but the prior depends on it; expected embedded labels")
        return FlowDistribution(self, condition.float())


@dataclass
class FlowDistribution:
    """p(z), or p(z | condition) of every row of `condition`, see `LatentPrior.distribution`."""

    prior: FlowPrior
    condition: Float[Tensor, "#b c"] | None

    def log_prob(self, z: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k"]:
        """ln p(z), summed over the elements of each latent, nats. float32."""
        context = None if self.condition is None else self.condition[:, None]
        noise, log_determinant = self.prior.flow(z.flatten(2), context)
        return log_determinant - 0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, n: int, generator: Generators = None, temperature: float = 1.0) -> Float[Tensor, "n d h w"]:
        """n draws, float32, see `LatentDistribution`. Of a conditional prior, n is a multiple of the conditions, and
        draws of one are adjacent.
        """
        condition = self.condition
        if condition is not None and len(condition) > 1:
            condition = condition.repeat_interleave(n // len(condition), 0)
        noise = standard_normal((n, self.prior.size), generator).to(next(self.prior.flow.parameters()).device)
        z, _ = self.prior.flow(temperature * noise, condition, inverse=True)
        return z.view(n, *self.prior.shape)
