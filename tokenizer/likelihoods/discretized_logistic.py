"""The mixture of discretized logistics of PixelCNN++."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.likelihoods.contract import signed
from tokenizer.likelihoods.scale import bounded_log_scale
from tokenizer.noise import Generators, gumbel, uniform
from tokenizer.options import Options

HALF = 1 / 255  # half of the distance between two values of a pixel, in the range [-1, 1]
FLOOR = -7.0  # of log scales, as in PixelCNN++: a ninth of that distance


class DiscretizedLogisticConfig(Options):
    """`components` of the mixture; with 1 it is a discretized logistic."""

    kind: Literal["discretized_logistic"] = "discretized_logistic"
    components: int = Field(default=10, ge=1, examples=[1])


@dataclass
class Mixture:
    """K components at each pixel. Their values are in the range [-1, 1] of the encoder.

    means, log_scales: of each channel. coefficients[c][d]: how the value of channel d < c moves the mean of channel c.
    """

    logits: Float[Tensor, "*n k h w"]
    means: Sequence[Float[Tensor, "*n k h w"]]
    log_scales: Sequence[Float[Tensor, "*n k h w"]]
    coefficients: Sequence[Sequence[Float[Tensor, "*n k h w"]]]

    def location(self, channel: int, values: Sequence[Tensor]) -> Float[Tensor, "*n k h w"]:
        """Where `channel` has its mean, given the `values` of the channels before it (PixelCNN++, equation 3)."""
        shifts = [coefficient * value for coefficient, value in zip(self.coefficients[channel], values, strict=False)]
        return self.means[channel] + sum(shifts)

    def choose(self, component: Tensor) -> "Mixture":
        """One component at each pixel; `component` (*n, 1, h, w) holds integers."""

        def chosen(maps: Tensor) -> Tensor:
            return maps.gather(-3, component)

        return Mixture(
            chosen(self.logits),
            [chosen(maps) for maps in self.means],
            [chosen(maps) for maps in self.log_scales],
            [[chosen(maps) for maps in row] for row in self.coefficients],
        )


class DiscretizedLogistic(nn.Module):
    """A probability mass over 8-bit pixels (Salimans et al. 2017, arXiv 1701.05517, section 2.1 and 2.2).

    A value has the mass that a mixture of logistics gives to the interval around it; black and white have their tails.
    As in the paper the three channels of a pixel share the component, and within it the mean of green depends linearly
    on red, that of blue on red and green. The maps are K logits (none if K = 1), then K means and K log scales of
    each channel, and for RGB K coefficients of red on green, red on blue and green on blue.
    """

    inmap = staticmethod(signed)
    is_mass, bins = True, 256

    def __init__(self, config: DiscretizedLogisticConfig, channels: int):
        super().__init__()
        self.config = config
        self.channels = channels
        self.mixed = config.components > 1
        pairs = channels * (channels - 1) // 2
        self.out_channels = config.components * (self.mixed + 2 * channels + pairs)

    def nll(self, params: Float[Tensor, "*n p h w"], x: Float[Tensor, "*#n c h w"]) -> Float[Tensor, "*n"]:
        mixture = self._mixture(params)
        values = signed((255 * x).round().clamp(0, 255) / 255).split(1, dim=-3)
        total = mixture.logits.log_softmax(-3)
        for channel, value in enumerate(values):
            total = total + log_mass(value, mixture.location(channel, values), mixture.log_scales[channel])
        return -total.logsumexp(-3).sum((-2, -1))

    def mean(self, params: Float[Tensor, "*n p h w"]) -> Float[Tensor, "*n c h w"]:
        """The mean before values are rounded to 8 bits.

        Of the first channel it has a closed form. The others depend on those before them: they are averaged over a
        Fibonacci lattice of their quantiles. Over random components of all widths that is 0.14 grey levels off on
        average, 3 at most.
        """
        mixture = self._mixture(params)
        weights = mixture.logits.softmax(-3)
        points, step = (34, 21) if self.channels > 1 else (1, 1)
        totals = [torch.zeros_like(weights) for _ in range(self.channels)]
        for point in range(points):
            quantiles = [(point + 0.5) / points, (point * step % points + 0.5) / points]
            values: list[Tensor] = []
            for channel, total in enumerate(totals):
                location, scale = mixture.location(channel, values), mixture.log_scales[channel].exp()
                totals[channel] = total + clipped_mean(location, scale)
                if channel < self.channels - 1:
                    u = quantiles[channel]
                    values.append((location + scale * math.log(u / (1 - u))).clamp(-1, 1))
        means = [(weights * total / points).sum(-3) for total in totals]
        return ((torch.stack(means, dim=-3) + 1) / 2).clamp(0, 1)

    def sample(self, params: Float[Tensor, "*n p h w"], generator: Generators = None) -> Float[Tensor, "*n c h w"]:
        mixture = self._mixture(params)
        shape, device = mixture.logits.shape, params.device
        component = (mixture.logits + gumbel(shape, generator, device)).argmax(-3, keepdim=True)
        noise = uniform((*shape[:-3], self.channels, *shape[-2:]), generator, device).logit().split(1, dim=-3)
        one, values = mixture.choose(component), []
        for channel in range(self.channels):
            continuous = one.location(channel, values) + one.log_scales[channel].exp() * noise[channel]
            values.append(signed((255 * (continuous + 1) / 2).round().clamp(0, 255) / 255))
        return (torch.cat(values, dim=-3) + 1) / 2

    def _mixture(self, params: Tensor) -> Mixture:
        maps = iter(params.float().unflatten(-3, (-1, self.config.components)).unbind(-4))
        logits = [next(maps)] if self.mixed else []
        means = [next(maps) for _ in range(self.channels)]
        log_scales = [bounded_log_scale(next(maps), FLOOR) for _ in range(self.channels)]
        coefficients = [[next(maps).tanh() for _ in range(channel)] for channel in range(self.channels)]
        return Mixture(logits[0] if logits else torch.zeros_like(means[0]), means, log_scales, coefficients)


def log_mass(
    value: Float[Tensor, "*#n"], location: Float[Tensor, "*n"], log_scale: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """ln of the mass that a logistic gives to the interval around `value`.

    Exact, where PixelCNN++ takes the density at the middle for small masses:
    sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)).
    """
    inverse = torch.exp(-log_scale)
    upper, lower = (value + HALF - location) * inverse, (value - HALF - location) * inverse
    below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
    inside = below + above + torch.log(-torch.expm1(-2 * HALF * inverse))
    return torch.where(value < HALF - 1, below, torch.where(value > 1 - HALF, above, inside))


def clipped_mean(location: Float[Tensor, "*n"], scale: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """E[clip(Y, -1, 1)] of a logistic Y: -1 plus the integral of P(Y > y) from -1 to 1."""
    return scale * (F.softplus((location + 1) / scale) - F.softplus((location - 1) / scale)) - 1
