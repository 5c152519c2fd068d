"""The Bernoulli likelihood of black-and-white images."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.likelihoods.contract import signed, sum_per_image
from tokenizer.noise import Generators, uniform
from tokenizer.options import Options


class BernoulliConfig(Options):
    """No options."""

    kind: Literal["bernoulli"] = "bernoulli"


class Bernoulli(nn.Module):
    """The decoder gives the logit that a pixel is white; a grey level counts as the probability of white.

    For black-and-white images nll is exact. For grey x it is the customary relaxation -x log p - (1 - x) log(1 - p):
    the mean nll over random binarisations of x, in nats, but no normalised density over [0, 1] (for that see the
    continuous Bernoulli, Loaiza-Ganem & Cunningham 2019, arXiv 1907.06845). Its minimum is still at p = x.
    """

    inmap = staticmethod(signed)
    is_mass, bins = True, 2

    def __init__(self, config: BernoulliConfig, channels: int):
        super().__init__()
        self.config = config
        self.out_channels = channels

    def nll(self, params: Float[Tensor, "*n p h w"], x: Float[Tensor, "*#n c h w"]) -> Float[Tensor, "*n"]:
        logits = params.float()
        return sum_per_image(F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none"))

    def mean(self, params: Float[Tensor, "*n p h w"]) -> Float[Tensor, "*n c h w"]:
        return params.float().sigmoid()

    def sample(self, params: Float[Tensor, "*n p h w"], generator: Generators = None) -> Float[Tensor, "*n c h w"]:
        return (uniform(params.shape, generator, params.device) < self.mean(params)).float()
