"""Strided convolutions and a few residual blocks: the network of VQ-VAE, cheap enough for a CPU.

van den Oord et al. 2017, arXiv 1711.00937, section 4.1. No normalisation; every 3x3 convolution at the smallest grid.
With `dense_widths` and no residual blocks it is the network of beta-VAE and of disentanglement_lib (Locatello et al.
2019, arXiv 1811.12359): `widths: [32, 32, 64, 64], residual_blocks: 0, dense_widths: [256]` at 64 pixels.
"""

from itertools import pairwise
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.backbones.latent_grid import grid_to_vector, halved, vector_to_grid
from tokenizer.conditions import ConditionConfig, hidden_layers, input_channels, input_layers
from tokenizer.layers import Sequential
from tokenizer.options import Options


class ConvConfig(Options):
    """One width per halving of the grid, outermost first; the residual blocks run at the last width.

    dense_widths: the latent is one vector behind dense layers of these widths ([]: behind the convolutions). It needs
        no 3x3 convolution where there is no residual block. None: the latent is a grid.
    """

    kind: Literal["conv"] = "conv"
    widths: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(32, 64), min_length=1, max_length=16)
    residual_blocks: int = Field(default=2, ge=0, le=1000)
    residual_width: int = Field(default=32, gt=0)
    dense_widths: tuple[Annotated[int, Field(gt=0)], ...] | None = Field(
        default=None, max_length=1000, examples=[(), (8, 6)]
    )

    def last_grid(self, image_size: int) -> int:
        """The side of the smallest grid. Raises ValueError when the image cannot be halved so often."""
        return halved(image_size, len(self.widths), self.kind)

    def grid_side(self, image_size: int) -> int:
        """The side of the latent grid, 1 for a vector. Raises ValueError when the image cannot be halved so often."""
        last = self.last_grid(image_size)
        return last if self.dense_widths is None else 1


class PlainResidualBlock(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution, added to the input."""

    takes_condition = True

    def __init__(self, width: int, residual_width: int, condition: ConditionConfig | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(width, residual_width, 3, padding=1)
        self.modulation = Sequential(*hidden_layers(condition, residual_width))
        self.conv2 = nn.Conv2d(residual_width, width, 1)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        return x + self.conv2(F.relu(self.modulation(self.conv1(F.relu(x)), condition)))


def conv_encoder(
    config: ConvConfig, in_channels: int, out_channels: int, image_size: int, condition: ConditionConfig | None
) -> Sequential:
    """(b, in_channels, H, W) -> (b, out_channels, h, w)."""
    layers = input_layers(condition)
    for before, after in pairwise((in_channels + input_channels(condition), *config.widths)):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), *hidden_layers(condition, after), nn.ReLU()]
    width = config.widths[-1]
    if config.dense_widths is None:
        return Sequential(*layers, *_trunk(config, width, condition), nn.Conv2d(width, out_channels, 1))
    if config.residual_blocks:
        layers += _trunk(config, width, condition)
    side = config.last_grid(image_size)
    return Sequential(*layers, *grid_to_vector(width, side, config.dense_widths, out_channels, nn.ReLU, condition))


def conv_decoder(
    config: ConvConfig, in_channels: int, out_channels: int, image_size: int, condition: ConditionConfig | None
) -> Sequential:
    """(b, in_channels, h, w) -> (b, out_channels, H, W)."""
    layers, in_channels, width = input_layers(condition), in_channels + input_channels(condition), config.widths[-1]
    if config.dense_widths is not None:
        side = config.last_grid(image_size)
        layers += vector_to_grid(in_channels, config.dense_widths, width, side, nn.ReLU, condition)
        in_channels = width
    if config.dense_widths is None or config.residual_blocks:
        layers += _trunk(config, in_channels, condition)
    *upsampled, last = pairwise((*reversed(config.widths), out_channels))
    for before, after in upsampled:
        up = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
        layers += [up, *hidden_layers(condition, after), nn.ReLU()]
    return Sequential(*layers, nn.ConvTranspose2d(*last, 4, stride=2, padding=1))


def _trunk(config: ConvConfig, in_channels: int, condition: ConditionConfig | None) -> list[nn.Module]:
    """A 3x3 convolution to the last width and the residual blocks."""
    width = config.widths[-1]
    layers = [nn.Conv2d(in_channels, width, 3, padding=1), *hidden_layers(condition, width)]
    layers += [PlainResidualBlock(width, config.residual_width, condition) for _ in range(config.residual_blocks)]
    return [*layers, nn.ReLU()]
