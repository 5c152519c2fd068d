"""The top-down network of a hierarchical latent: from the latents of the levels above to a level's distributions."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.divergences import gaussian_kl
from tokenizer.posteriors import DiagonalGaussian

Grid = tuple[int, int]
Shape = tuple[int, int, int]
Merge = Literal["concatenate", "precision_weighted"]


def layer(in_channels: int, out_channels: int, grid: Grid, stride: int = 1) -> nn.Module:
    """A 3x3 convolution; on a grid of one position, where it would see padding only, a dense layer.

    Weights begin as those of the gated MLP do, with variance 2 / fan-in.
    """
    if grid == (1, 1):
        linear = nn.Linear(in_channels, out_channels)
        nn.init.normal_(linear.weight, std=math.sqrt(2 / in_channels))
        return nn.Sequential(nn.Flatten(), linear, nn.Unflatten(1, (out_channels, 1, 1)))
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / (9 * in_channels)))
    return convolution


def gated(in_channels: int, out_channels: int, grid: Grid, stride: int = 1) -> nn.Module:
    """(W1 x + b1) * sigmoid(W2 x + b2)."""
    return nn.Sequential(layer(in_channels, 2 * out_channels, grid, stride), nn.GLU(1))


class TopDown(nn.Module):
    """p(z_l | levels above), q(z_l | levels above, x), and what the decoder sees of all levels.

    Levels have the `shapes` (d, h, w), from the top, level 0, down to the bottom. A joint latent (n, total, 1, 1) holds
    them one after another, flattened. What a level depends on is the state above it, (n, width, h, w): a function of
    all latents above. What x says about a level is its evidence, which the bottom-up network makes.

    merge: how state and evidence give q. "concatenate": a gated layer sees both. The evidence is that layer's product
        with the features, so it is computed once for all draws. "precision_weighted": the evidence is a Gaussian, whose
        product with p(z_l | levels above) is q (Sønderby et al. 2016, arXiv 1602.02282).
    """

    def __init__(self, shapes: Sequence[Shape], width: int, log_variance_range: tuple[float, float], merge: Merge):
        super().__init__()
        self.shapes, self.log_variance_range, self.merge = tuple(shapes), log_variance_range, merge
        self.sizes = [math.prod(shape) for shape in shapes]
        lower = list(shapes[1:])
        self.states = nn.ModuleList(
            gated(d + (width if level else 0), width, (h, w)) for level, (d, h, w) in enumerate(shapes[:-1])
        )
        self.priors = nn.ModuleList(layer(width, 2 * d, (h, w)) for d, h, w in lower)
        if merge == "concatenate":
            self.joints = nn.ModuleList(layer(width, 2 * width, (h, w)) for _, h, w in lower)
            self.posteriors = nn.ModuleList(layer(width, 2 * d, (h, w)) for d, h, w in lower)
        self.out_channels = width + shapes[-1][0]

    def evidence_channels(self, level: int, width: int) -> int:
        """Channels of the evidence of a level."""
        return 2 * width if level and self.merge == "concatenate" else 2 * self.shapes[level][0]

    def forward(
        self, evidence: Sequence[Float[Tensor, "n _ _ _"]], z: Sequence[Float[Tensor, "n _ _ _"]]
    ) -> list[DiagonalGaussian]:
        """q of every level, given the latents of the levels above."""
        above = self.states_above(z)
        return [self.posterior(level, *given) for level, given in enumerate(zip(above, evidence, strict=False))]

    def prior(self, level: int, state: Float[Tensor, "n c h w"]) -> DiagonalGaussian:
        """p(z_l | levels above) of a level below the top."""
        return self._gaussian(self.priors[level - 1](state))

    def posterior(
        self, level: int, state: Float[Tensor, "n c h w"] | None, evidence: Float[Tensor, "n _ h w"]
    ) -> DiagonalGaussian:
        """q(z_l | levels above, x); of the top level, which has no state above, q(z_l | x)."""
        if state is None:
            return self._gaussian(evidence)
        if self.merge == "concatenate":
            hidden = F.glu(self.joints[level - 1](state) + evidence, 1)
            return self._gaussian(self.posteriors[level - 1](hidden))
        return product(self.prior(level, state), self._gaussian(evidence))

    def states_above(self, z: Sequence[Float[Tensor, "n _ _ _"]]) -> list[Tensor | None]:
        """The state above every level, None at the top; at the end what the decoder sees."""
        states: list[Tensor | None] = [None]
        for level, latent in enumerate(z):
            states.append(self._advance(level, states[-1], latent))
        return states

    def descend(
        self,
        top: Float[Tensor, "n d h w"],
        conditional: Callable[[int, Tensor], DiagonalGaussian],
        noise: Sequence[Float[Tensor, "n _ _ _"]],
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Latents of all levels, those below the top drawn from `conditional(level, state)`, and their states."""
        z, states = [top], [None, self._advance(0, None, top)]
        for level in range(1, len(self.shapes)):
            state = states[level]
            assert state is not None
            z.append(from_noise(conditional(level, state), noise[level]))
            states.append(self._advance(level, state, z[level]))
        return z, states

    def split(self, z: Float[Tensor, "n total 1 1"]) -> list[Tensor]:
        """The levels of joint latents."""
        parts = z.flatten(1).split(self.sizes, 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _advance(self, level: int, state: Tensor | None, z: Float[Tensor, "n d h w"]) -> Tensor:
        z = z.to(next(self.parameters()).dtype)
        seen = z if state is None else torch.cat([state, z], 1)
        if level == len(self.shapes) - 1:
            return seen
        new = self.states[level](seen)
        new = new if state is None else state + new
        grid = self.shapes[level + 1][1:]
        return new if new.shape[2:] == grid else F.interpolate(new, grid, mode="nearest")

    def _gaussian(self, h: Float[Tensor, "n c h w"]) -> DiagonalGaussian:
        mean, log_variance = h.float().chunk(2, 1)
        return DiagonalGaussian(mean, log_variance.clamp(*self.log_variance_range))


def join(levels: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n total 1 1"]:
    """Joint latents of their levels."""
    return torch.cat([level.flatten(1) for level in levels], 1)[:, :, None, None]


def from_noise(gaussian: DiagonalGaussian, noise: Float[Tensor, "n d h w"]) -> Float[Tensor, "n d h w"]:
    """The draw that standard normal noise gives; the mean for noise of 0."""
    return gaussian.mean + (0.5 * gaussian.log_variance).exp() * noise


def product(one: DiagonalGaussian, other: DiagonalGaussian) -> DiagonalGaussian:
    """The Gaussian whose density is proportional to the product of both densities: precisions add up."""
    log_variance = -torch.logaddexp(-one.log_variance, -other.log_variance)
    share = (log_variance - one.log_variance).exp()
    return DiagonalGaussian(other.mean + share * (one.mean - other.mean), log_variance)


def log_density(gaussian: DiagonalGaussian, z: Float[Tensor, "n d h w"]) -> Float[Tensor, " n"]:
    """ln of the density of one latent each, nats."""
    return gaussian.log_prob(z[:, None])[:, 0]


def kl_between(one: DiagonalGaussian, other: DiagonalGaussian) -> Float[Tensor, "n d h w"]:
    """KL(one || other) of every element, nats: that of both in units of the other, which is then N(0, 1)."""
    deviation = (0.5 * other.log_variance).exp()
    return gaussian_kl((one.mean - other.mean) / deviation, one.log_variance - other.log_variance)
