"""Likelihoods of location + scale * noise, and bounds of a scale that the decoder predicts."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.likelihoods.contract import signed, sum_per_image
from tokenizer.noise import Generators

Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["learned", "predicted"]

CEILING = 7.0  # of log scales: noise a thousand times as wide as the range of pixels is flat


def bounded_log_scale(maps: Float[Tensor, "*n"], floor: float) -> Float[Tensor, "*n"]:
    """ln(exp(maps) + exp(floor)): above `floor`, with a gradient everywhere below CEILING."""
    return (floor + F.softplus(maps - floor)).clamp(max=CEILING)


class LocationScale(nn.Module, ABC):
    """x = location + scale * noise in every channel of every pixel: a density over continuous pixels.

    The first maps are locations, in the range [-1, 1] of the encoder. `scale` is in units of the [0, 1] range of
    images: a number, "learned" (one for all pixels) or "predicted" (a second set of maps, one for each location).
    """

    inmap = staticmethod(signed)
    is_mass, bins = False, None
    FLOOR = math.log(1 / 255)  # finer noise than one grey level would model the 8-bit rounding, not the image
    LOG_CONSTANT: float
    START = math.log(0.25)  # pixels deviate by about so much

    def __init__(self, scale: Scale, channels: int):
        super().__init__()
        self.scale = scale
        self.predicted = scale == "predicted"
        self.out_channels = channels * (2 if self.predicted else 1)
        # log_scale = FLOOR + softplus(free): bounded below, with a gradient everywhere.
        start = math.log(math.expm1(self.START - self.FLOOR))
        self.free_log_scale = nn.Parameter(torch.tensor(start)) if scale == "learned" else None

    def nll(self, params: Float[Tensor, "*n p h w"], x: Float[Tensor, "*#n c h w"]) -> Float[Tensor, "*n"]:
        maps, log_scale = self._location_maps(params), self.log_scale(params)
        deviation = (signed(x) - maps) * (torch.exp(-log_scale) / 2)  # the scale is one of [0, 1]
        return sum_per_image(self.energy(deviation)) + sum_per_image((log_scale + self.LOG_CONSTANT).expand_as(maps))

    def mean(self, params: Float[Tensor, "*n p h w"]) -> Float[Tensor, "*n c h w"]:
        """The location, clipped to what can be shown."""
        return self._location(params).clamp(0, 1)

    def sample(self, params: Float[Tensor, "*n p h w"], generator: Generators = None) -> Float[Tensor, "*n c h w"]:
        location = self._location(params)
        noise = self.standard_noise(location.shape, generator, params.device)
        return (location + self.log_scale(params).exp() * noise).clamp(0, 1)

    def log_scale(self, params: Float[Tensor, "*n p h w"]) -> Float[Tensor, "*m"]:
        """ln scale: of every pixel if it is predicted, otherwise one number."""
        if self.predicted:
            return bounded_log_scale(self.START + params.float().chunk(2, dim=-3)[1], self.FLOOR)
        if self.free_log_scale is not None:
            return self.FLOOR + F.softplus(self.free_log_scale.float())
        return torch.full((), math.log(float(self.scale)), device=params.device)

    @abstractmethod
    def energy(self, deviation: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """-ln p of noise of scale 1, less LOG_CONSTANT."""

    @abstractmethod
    def standard_noise(self, shape: torch.Size, generator: Generators, device: torch.device) -> Float[Tensor, "..."]:
        """Noise of scale 1."""

    def _location(self, params: Tensor) -> Tensor:
        return (self._location_maps(params) + 1) / 2

    def _location_maps(self, params: Tensor) -> Tensor:
        return params.float().chunk(2, dim=-3)[0] if self.predicted else params.float()
