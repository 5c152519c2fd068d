"""The categorical likelihood: a probability for every value of a pixel."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tokenizer.likelihoods.contract import signed, sum_per_image
from tokenizer.noise import Generators, gumbel
from tokenizer.options import Options


class CategoricalConfig(Options):
    """`bins` grey levels per channel; 256 keeps every 8-bit value."""

    kind: Literal["categorical"] = "categorical"
    bins: int = Field(default=256, ge=2, le=256, examples=[16])


class Categorical(nn.Module):
    """A softmax over `bins` values k / (bins - 1) in every channel of every pixel: a probability mass, so nll >= 0.

    With 256 bins nll is that of the 8-bit image itself; with fewer, of the image rounded to that many levels.
    """

    inmap = staticmethod(signed)
    is_mass = True

    def __init__(self, config: CategoricalConfig, channels: int):
        super().__init__()
        self.config = config
        self.channels = channels
        self.bins = config.bins
        self.out_channels = channels * config.bins

    def nll(self, params: Float[Tensor, "*n p h w"], x: Float[Tensor, "*#n c h w"]) -> Float[Tensor, "*n"]:
        log_mass = self._logits(params).log_softmax(-3)
        bins = (x * (self.bins - 1)).round().long().clamp(0, self.bins - 1)
        bins = bins.expand(*params.shape[:-3], *bins.shape[-3:]).unsqueeze(-3)
        return -sum_per_image(log_mass.gather(-3, bins).squeeze(-3))

    def mean(self, params: Float[Tensor, "*n p h w"]) -> Float[Tensor, "*n c h w"]:
        values = torch.linspace(0, 1, self.bins, device=params.device).view(-1, 1, 1)
        # No matmul: autocast would halve its precision.
        return (self._logits(params).softmax(-3) * values).sum(-3).clamp(0, 1)

    def sample(self, params: Float[Tensor, "*n p h w"], generator: Generators = None) -> Float[Tensor, "*n c h w"]:
        logits = self._logits(params)
        noisy = logits + gumbel(logits.shape, generator, logits.device)
        return noisy.argmax(-3) / (self.bins - 1)

    def _logits(self, params: Tensor) -> Float[Tensor, "*n c k h w"]:
        return params.float().unflatten(-3, (self.channels, self.bins))
