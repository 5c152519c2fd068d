"""The logit-Laplace likelihood of DALL-E's tokenizer."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.likelihoods.contract import sum_per_image
from tokenizer.likelihoods.laplace import laplace_quantile
from tokenizer.likelihoods.scale import bounded_log_scale
from tokenizer.noise import Generators, uniform
from tokenizer.options import Options

EPS = 0.1
LIMIT = 20.0  # of free log scales


class LogitLaplaceConfig(Options):
    """Location and scale are predicted for every channel of every pixel.

    scale_floor: the least scale. "grey_level": that at which mid-grey may be one level off. "none": the maps are ln b
        as they are, as in the paper (kept between -20 and 20, so that numbers stay finite). Where many pixels are
        exactly alike, a plain background say, their density then grows and grows, and so does its weight in the loss.
    shown: of the distribution of a pixel, what pictures show. The paper shows the "median", unmap_pixels(sigmoid(mu)).
    """

    kind: Literal["logit_laplace"] = "logit_laplace"
    scale_floor: Literal["grey_level", "none"] = "grey_level"
    shown: Literal["mean", "median"] = "mean"


def map_pixels(x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """[0, 1] -> [0.1, 0.9], where a logit is finite."""
    return (1 - 2 * EPS) * x + EPS


def unmap_pixels(y: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """The inverse of `map_pixels`, clipped to what can be shown: (0, 1) -> [0, 1]."""
    return ((y - EPS) / (1 - 2 * EPS)).clamp(0, 1)


class LogitLaplace(nn.Module):
    """y = map_pixels(x) is the sigmoid of a Laplace variable (Ramesh et al. 2021, arXiv 2102.12092, appendix A.3):

        p(y | mu, b) = exp(-|logit(y) - mu| / b) / (2 b y (1 - y)),   0 < y < 1.

    The maps are mu, then ln b. `nll` is of the density of x, not of y: it is normalised over -1/8 < x < 9/8, and
    compares with those of other densities. That of y, the paper's, is less by -ln 0.8 in every dimension.
    """

    inmap = staticmethod(map_pixels)
    is_mass, bins = False, None
    FLOOR = math.log(4 * (1 - 2 * EPS) / 255)  # the logit of mid-grey changes so much in one grey level
    NODES = 32

    def __init__(self, config: LogitLaplaceConfig, channels: int):
        super().__init__()
        self.config = config
        self.out_channels = 2 * channels

    def nll(self, params: Float[Tensor, "*n p h w"], x: Float[Tensor, "*#n c h w"]) -> Float[Tensor, "*n"]:
        mu, log_scale = self._mu_and_log_scale(params)
        y = map_pixels(x)
        laplace = (y.logit() - mu).abs() * torch.exp(-log_scale) + log_scale + math.log(2)
        log_slope = math.log(1 - 2 * EPS) - torch.log(y * (1 - y))  # ln |d logit(y) / d x|
        return sum_per_image(laplace - log_slope)

    def mean(self, params: Float[Tensor, "*n p h w"]) -> Float[Tensor, "*n c h w"]:
        """The mean over evenly spaced quantiles, half a grey level off at worst. Or the median, if the options say so,
        which differs the more the wider the noise is."""
        mu, log_scale = self._mu_and_log_scale(params)
        if self.config.shown == "median":
            return unmap_pixels(torch.sigmoid(mu))
        scale, total = log_scale.exp(), torch.zeros_like(mu)
        for noise in laplace_quantile((torch.arange(self.NODES) + 0.5) / self.NODES).tolist():
            total = total + unmap_pixels(torch.sigmoid(mu + scale * noise))
        return total / self.NODES

    def sample(self, params: Float[Tensor, "*n p h w"], generator: Generators = None) -> Float[Tensor, "*n c h w"]:
        mu, log_scale = self._mu_and_log_scale(params)
        noise = laplace_quantile(uniform(mu.shape, generator, mu.device))
        return unmap_pixels(torch.sigmoid(mu + log_scale.exp() * noise))

    def _mu_and_log_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        mu, maps = params.float().chunk(2, dim=-3)
        free = self.config.scale_floor == "none"
        return mu, maps.clamp(-LIMIT, LIMIT) if free else bounded_log_scale(maps, self.FLOOR)
