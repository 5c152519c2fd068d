"""The Laplace likelihood: absolute errors."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.likelihoods.scale import LocationScale, Scale
from tokenizer.noise import Generators, uniform
from tokenizer.options import Options


class LaplaceConfig(Options):
    """`scale`: mean absolute deviation of pixel noise, in units of the [0, 1] range; "learned" fits one for all pixels,
    "predicted" lets the decoder give one for each."""

    kind: Literal["laplace"] = "laplace"
    scale: Scale = 0.1


class Laplace(LocationScale):
    """p(x) = exp(-|x - location| / scale) / (2 scale) in every channel of every pixel."""

    LOG_CONSTANT = math.log(2)

    def __init__(self, config: LaplaceConfig, channels: int):
        super().__init__(config.scale, channels)
        self.config = config

    def energy(self, deviation: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return deviation.abs()

    def standard_noise(self, shape: torch.Size, generator: Generators, device: torch.device) -> Float[Tensor, "..."]:
        return laplace_quantile(uniform(shape, generator, device))


def laplace_quantile(u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """What Laplace noise of scale 1 is below with probability u in (0, 1)."""
    centred = u - 0.5
    return -centred.sign() * torch.log1p(-2 * centred.abs())
