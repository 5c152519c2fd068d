"""The posterior that a normalizing flow makes of a diagonal Gaussian."""

import math
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tokenizer.bottlenecks.contract import BottleneckOutput, OneLevel
from tokenizer.bottlenecks.gaussian import GaussianOptions
from tokenizer.flows import Flow, Widths
from tokenizer.posteriors import DiagonalGaussian, FlowGaussian


class FlowGaussianConfig(GaussianOptions):
    """The diagonal Gaussian is followed by a flow over the flattened latent.

    flow: "inverse_autoregressive" (IAF, Kingma et al. 2016, arXiv 1606.04934) or "coupling" (RealNVP, arXiv
        1605.08803). Both draw in one pass. Densities of latents that were not drawn, which a VampPrior asks for, cost
        the first as many passes as the latent has elements.
    transforms: of the flow. widths: of the hidden layers of each.
    context: channels of features that the flow depends on.
    """

    kind: Literal["flow_gaussian"] = "flow_gaussian"
    flow: Literal["inverse_autoregressive", "coupling"] = "inverse_autoregressive"
    transforms: int = Field(default=3, ge=1, le=1000)
    widths: Widths = (128, 128)
    context: int = Field(default=16, ge=1)


class FlowGaussianBottleneck(OneLevel, nn.Module):
    """h holds means, log-variances, and the context of the flow."""

    def __init__(self, config: FlowGaussianConfig, grid: tuple[int, int]):
        super().__init__()
        self.config = config
        self.dim, self.in_channels = config.dim, 2 * config.dim + config.context
        # A masked autoregressive flow maps in one pass and takes many to invert. Draws are what it maps to.
        kind = "coupling" if config.flow == "coupling" else "masked_autoregressive"
        positions = math.prod(grid)
        self.flow = Flow(kind, config.dim * positions, config.transforms, config.widths, config.context * positions)

    def forward(self, h: Float[Tensor, "b c h w"], step: int = 0) -> BottleneckOutput:
        mean, log_variance, context = h.float().split([self.dim, self.dim, self.config.context], 1)
        base = DiagonalGaussian(mean, log_variance.clamp(*self.config.log_variance_range))
        return BottleneckOutput(posterior=FlowGaussian(base, self.flow, context.flatten(1)))

    def encode_state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}
