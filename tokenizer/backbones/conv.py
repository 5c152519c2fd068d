"""Strided convolutions and a few residual blocks: the network of VQ-VAE, cheap enough for a CPU.

van den Oord et al. 2017, arXiv 1711.00937, section 4.1. No normalisation; every 3x3 convolution at the smallest grid.
"""

from itertools import pairwise
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.backbones.halving import halved
from tokenizer.layers import Sequential
from tokenizer.options import Options


class ConvConfig(Options):
    """One width per halving of the grid, outermost first; the residual blocks run at the last width."""

    kind: Literal["conv"] = "conv"
    widths: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(32, 64), min_length=1, max_length=16)
    residual_blocks: int = Field(default=2, ge=0, le=1000)
    residual_width: int = Field(default=32, gt=0)

    def grid_side(self, image_size: int) -> int:
        """Raises ValueError when the image cannot be halved so often."""
        return halved(image_size, len(self.widths), self.kind)


class PlainResidualBlock(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution, added to the input."""

    def __init__(self, width: int, residual_width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, residual_width, 3, padding=1)
        self.conv2 = nn.Conv2d(residual_width, width, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def conv_encoder(config: ConvConfig, in_channels: int, out_channels: int) -> Sequential:
    """(b, in_channels, H, W) -> (b, out_channels, h, w)."""
    layers: list[nn.Module] = []
    for before, after in pairwise((in_channels, *config.widths)):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    width = config.widths[-1]
    layers += [nn.Conv2d(width, width, 3, padding=1), *_trunk(config), nn.Conv2d(width, out_channels, 1)]
    return Sequential(*layers)


def conv_decoder(config: ConvConfig, in_channels: int, out_channels: int) -> Sequential:
    """(b, in_channels, h, w) -> (b, out_channels, H, W)."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, config.widths[-1], 3, padding=1), *_trunk(config)]
    *upsampled, last = pairwise((*reversed(config.widths), out_channels))
    for before, after in upsampled:
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    layers.append(nn.ConvTranspose2d(*last, 4, stride=2, padding=1))
    return Sequential(*layers)


def _trunk(config: ConvConfig) -> list[nn.Module]:
    blocks = [PlainResidualBlock(config.widths[-1], config.residual_width) for _ in range(config.residual_blocks)]
    return [*blocks, nn.ReLU()]
