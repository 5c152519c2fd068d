"""p(x | z): each likelihood owns the pixel range and the number of maps that the decoder must give.

Images are in [0, 1] outside and in [-1, 1] at the encoder (`inmap`). `nll` is in nats per image: a sum over
channels and pixels, never a mean. `mean` is the image to show, `sample` adds pixel noise.
"""

import math
from typing import Annotated, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.noise import standard_normal
from tokenizer.options import Options


class NormalConfig(Options):
    """`scale`: standard deviation of pixel noise, in units of the [0, 1] range; "learned" fits one for all pixels."""

    kind: Literal["normal"] = "normal"
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["learned"] = 0.1


class BernoulliConfig(Options):
    """No options."""

    kind: Literal["bernoulli"] = "bernoulli"


class CategoricalConfig(Options):
    """`bins` grey levels per channel; 256 keeps every 8-bit value."""

    kind: Literal["categorical"] = "categorical"
    bins: int = Field(default=256, ge=2, le=256, examples=[16])


LikelihoodConfig = Annotated[NormalConfig | BernoulliConfig | CategoricalConfig, Field(discriminator="kind")]


def signed(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """[0, 1] -> [-1, 1]."""
    return 2 * x - 1


class Normal(nn.Module):
    """x ~ N(mean, scale²) in every channel of every pixel: a density over continuous pixels in [0, 1].

    Being a density, its nll may be negative and compares only with other densities on [0, 1], not with a probability
    mass over 256 grey levels. A learned scale is the sigma-VAE (Rybkin et al. 2021, arXiv 2006.13202): the noise that
    fits the reconstruction error takes the place of a hand-tuned beta.
    """

    inmap = staticmethod(signed)
    FLOOR = math.log(1 / 255)  # finer noise than one grey level would model the 8-bit rounding, not the image

    def __init__(self, config: NormalConfig, channels: int):
        super().__init__()
        self.config = config
        self.out_channels = channels
        # log_scale = FLOOR + softplus(free): bounded below, with a gradient everywhere. Pixels deviate by about 0.25.
        start = math.log(math.expm1(math.log(0.25) - self.FLOOR))
        self.free_log_scale = nn.Parameter(torch.tensor(start)) if config.scale == "learned" else None

    def log_scale(self) -> Float[Tensor, ""]:
        if self.free_log_scale is not None:
            return self.FLOOR + F.softplus(self.free_log_scale)
        return torch.tensor(math.log(float(self.config.scale)))

    def nll(self, params: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        log_scale = self.log_scale()
        squared = (x - self._location(params)).square().flatten(1).sum(1)
        dims = x[0].numel()
        return squared * torch.exp(-2 * log_scale) / 2 + dims * (log_scale + math.log(2 * math.pi) / 2)

    def mean(self, params: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The mean, clipped to what can be shown."""
        return self._location(params).clamp(0, 1)

    def sample(
        self, params: Float[Tensor, "b c h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        noise = standard_normal(params.shape, generator, params.device)
        return (self._location(params) + self.log_scale().exp() * noise).clamp(0, 1)

    def _location(self, params: Tensor) -> Tensor:
        return (params.float() + 1) / 2  # the decoder works in the range of the encoder


class Bernoulli(nn.Module):
    """The decoder gives the logit that a pixel is white; a grey level counts as the probability of white.

    For black-and-white images nll is exact. For grey x it is the customary relaxation -x log p - (1 - x) log(1 - p):
    the mean nll over random binarisations of x, in nats, but no normalised density over [0, 1] (for that see the
    continuous Bernoulli, Loaiza-Ganem & Cunningham 2019, arXiv 1907.06845). Its minimum is still at p = x.
    """

    inmap = staticmethod(signed)

    def __init__(self, config: BernoulliConfig, channels: int):
        super().__init__()
        self.config = config
        self.out_channels = channels

    def nll(self, params: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        return F.binary_cross_entropy_with_logits(params.float(), x, reduction="none").flatten(1).sum(1)

    def mean(self, params: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return params.float().sigmoid()

    def sample(
        self, params: Float[Tensor, "b c h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        uniform = torch.rand(params.shape, generator=generator, device=_device(params, generator)).to(params.device)
        return (uniform < self.mean(params)).float()


class Categorical(nn.Module):
    """A softmax over `bins` values k / (bins - 1) in every channel of every pixel: a probability mass, so nll >= 0.

    With 256 bins nll is that of the 8-bit image itself; with fewer, of the image rounded to that many levels.
    """

    inmap = staticmethod(signed)

    def __init__(self, config: CategoricalConfig, channels: int):
        super().__init__()
        self.config = config
        self.bins = config.bins
        self.out_channels = channels * config.bins

    def nll(self, params: Float[Tensor, "b ck h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        target = (x * (self.bins - 1)).round().long().clamp(0, self.bins - 1)
        return F.cross_entropy(self._logits(params), target, reduction="none").flatten(1).sum(1)

    def mean(self, params: Float[Tensor, "b ck h w"]) -> Float[Tensor, "b c h w"]:
        values = torch.linspace(0, 1, self.bins, device=params.device).view(-1, 1, 1, 1)
        return (
            (self._logits(params).softmax(1) * values).sum(1).clamp(0, 1)
        )  # no matmul: autocast would halve its precision

    def sample(
        self, params: Float[Tensor, "b ck h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        logits = self._logits(params)
        uniform = torch.rand(logits.shape, generator=generator, device=_device(params, generator)).to(params.device)
        # The Gumbel-max trick: -log of an exponential variable is Gumbel noise.
        noise = -torch.log(-torch.log(uniform.clamp(min=torch.finfo(torch.float32).tiny)))
        return (logits + noise).argmax(1) / (self.bins - 1)

    def _logits(self, params: Tensor) -> Tensor:
        return rearrange(params.float(), "b (c k) h w -> b k c h w", k=self.bins)


Likelihood = Normal | Bernoulli | Categorical


def build_likelihood(config: LikelihoodConfig, channels: int) -> Likelihood:
    match config:
        case NormalConfig():
            return Normal(config, channels)
        case BernoulliConfig():
            return Bernoulli(config, channels)
        case CategoricalConfig():
            return Categorical(config, channels)


def _device(params: Tensor, generator: torch.Generator | None) -> torch.device:
    """Noise is drawn on the device of the generator, so that a CPU seed gives the same image on every device."""
    return params.device if generator is None else generator.device
