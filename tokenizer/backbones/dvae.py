"""The encoder and decoder of DALL-E's discrete variational autoencoder: bottleneck residual blocks without norms.

Ramesh et al. 2021, arXiv 2102.12092, appendix A.1, and the code of openai/DALL-E. At 256 pixels that network is
`width: 256, groups: 4, blocks_per_group: 2`, with `bottleneck: {kind: gumbel, num_codes: 8192, dim: 128}`, which holds
the decoder's first layer.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tokenizer.backbones.latent_grid import halved
from tokenizer.conditions import ConditionConfig, hidden_layers, input_channels, input_layers
from tokenizer.layers import Sequential
from tokenizer.options import Options

DOWN, UP = (3, 3, 3, 1), (1, 3, 3, 3)  # kernels of a block


class DvaeConfig(Options):
    """Group i of the encoder runs at `width` * 2^i channels; between two groups the grid is halved. The decoder has the
    groups in reverse.
    """

    kind: Literal["dvae"] = "dvae"
    width: int = Field(default=64, gt=0, multiple_of=4)
    groups: int = Field(default=3, ge=1, le=16)
    blocks_per_group: int = Field(default=2, ge=1, le=1000)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the groups, outermost first."""
        return tuple(self.width * 2**i for i in range(self.groups))

    @property
    def gain(self) -> float:
        """What the residual of a block is multiplied by: 1 / blocks²."""
        return (self.groups * self.blocks_per_group) ** -2

    def grid_side(self, image_size: int) -> int:
        """The side of the latent grid. Raises ValueError when the image cannot be halved so often."""
        return halved(image_size, self.groups - 1, self.kind)


class BottleneckBlock(nn.Module):
    """Four times ReLU and a convolution, at a quarter of the output's channels between them; times `gain`, added to the
    input, which a 1x1 convolution brings to as many channels.
    """

    takes_condition = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernels: tuple[int, ...],
        gain: float,
        condition: ConditionConfig | None = None,
    ):
        super().__init__()
        self.gain, width = gain, out_channels // 4
        layers: list[nn.Module] = []
        for (before, after), kernel in zip(pairwise((in_channels, *[width] * 3, out_channels)), kernels, strict=True):
            layers += [nn.ReLU(), _convolution(before, after, kernel)]
        layers[2:2] = hidden_layers(condition, width)
        self.residual = Sequential(*layers)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else _convolution(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Tensor | None = None) -> Float[Tensor, "b d h w"]:
        return self.shortcut(x) + self.gain * self.residual(x, condition)


def dvae_encoder(
    config: DvaeConfig, in_channels: int, out_channels: int, image_size: int, condition: ConditionConfig | None
) -> Sequential:
    """(b, in_channels, H, W) -> (b, out_channels, h, w)."""
    first, last = config.width, config.widths[-1]
    layers = [*input_layers(condition), _convolution(in_channels + input_channels(condition), first, 7)]
    layers += _groups(config, (first, *config.widths), DOWN, lambda: nn.MaxPool2d(2), condition)
    return Sequential(*layers, nn.ReLU(), _convolution(last, out_channels, 1))


def dvae_decoder(
    config: DvaeConfig, in_channels: int, out_channels: int, image_size: int, condition: ConditionConfig | None
) -> Sequential:
    """(b, in_channels, h, w) -> (b, out_channels, H, W). What goes in is the output of a 1x1 convolution already."""
    widths = (in_channels + input_channels(condition), *reversed(config.widths))
    groups = _groups(config, widths, UP, lambda: nn.Upsample(scale_factor=2.0, mode="nearest"), condition)
    return Sequential(*input_layers(condition), *groups, nn.ReLU(), _convolution(config.width, out_channels, 1))


def _groups(
    config: DvaeConfig,
    widths: tuple[int, ...],
    kernels: tuple[int, ...],
    resample: Callable[[], nn.Module],
    condition: ConditionConfig | None,
) -> list[nn.Module]:
    """A group for each pair of `widths`, input and output channels, and what resamples the grid between two groups."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        if layers:
            layers.append(resample())
        for channels in (before, *[after] * (config.blocks_per_group - 1)):
            layers.append(BottleneckBlock(channels, after, kernels, config.gain, condition))
    return layers


def _convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    """Same grid. Weights begin as N(0, 1 / (in_channels kernel²)), biases as 0."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(in_channels * kernel**2))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
