"""GroupNorm residual blocks with attention at chosen grids: the network of VQGAN and latent diffusion.

Esser et al. 2021, arXiv 2012.09841, table 7. Level by level the same layout as taming-transformers and diffusers.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from tokenizer.backbones.halving import halved
from tokenizer.layers import Attention, Downsample, ResidualBlock, Sequential, Upsample, group_norm
from tokenizer.options import TRAINING_ONLY, Options


class ResnetConfig(Options):
    """Level i runs at `width * multipliers[i]` channels; between two levels the grid is halved."""

    kind: Literal["resnet"] = "resnet"
    width: int = Field(default=64, gt=0)
    multipliers: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(1, 2, 4), min_length=1, max_length=16)
    residual_blocks: int = Field(default=2, gt=0, le=1000)  # per level; the decoder has one more, as in VQGAN
    attention_grids: tuple[Annotated[int, Field(gt=0)], ...] = ()  # sides of the grids whose blocks attend
    middle_attention: bool = True
    dropout: Annotated[float, TRAINING_ONLY] = Field(default=0.0, ge=0, lt=1)

    def grid_side(self, image_size: int) -> int:
        """Raises ValueError when the image cannot be halved so often, or attention is at no grid there is."""
        side = halved(image_size, len(self.multipliers) - 1, self.kind)
        if not set(self.attention_grids) <= set(self.grids(image_size)):
            raise ValueError(
                f"attention_grids {list(self.attention_grids)} must be among {self.grids(image_size)}, "
                f"the sides of the grids between {image_size} pixels and the codes"
            )
        return side

    def grids(self, image_size: int) -> list[int]:
        """The side of the grid at each level, from the pixels down to the codes."""
        return [image_size // 2**level for level in range(len(self.multipliers))]


def resnet_encoder(config: ResnetConfig, in_channels: int, out_channels: int, image_size: int) -> Sequential:
    """(b, in_channels, H, W) -> (b, out_channels, h, w)."""
    channels = config.width
    layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1)]
    grids = config.grids(image_size)
    for multiplier, grid in zip(config.multipliers, grids, strict=True):
        for _ in range(config.residual_blocks):
            layers += _block(config, channels, config.width * multiplier, grid)
            channels = config.width * multiplier
        if grid != grids[-1]:
            layers.append(Downsample(channels))
    layers += [*_middle(config, channels), group_norm(channels), nn.SiLU()]
    layers.append(nn.Conv2d(channels, out_channels, 3, padding=1))
    return Sequential(*layers)


def resnet_decoder(config: ResnetConfig, in_channels: int, out_channels: int, image_size: int) -> Sequential:
    """(b, in_channels, h, w) -> (b, out_channels, H, W)."""
    channels = config.width * config.multipliers[-1]
    layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1), *_middle(config, channels)]
    for multiplier, grid in reversed(list(zip(config.multipliers, config.grids(image_size), strict=True))):
        for _ in range(config.residual_blocks + 1):
            layers += _block(config, channels, config.width * multiplier, grid)
            channels = config.width * multiplier
        if grid != image_size:
            layers.append(Upsample(channels))
    layers += [group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)]
    return Sequential(*layers)


def _block(config: ResnetConfig, in_channels: int, out_channels: int, grid: int) -> list[nn.Module]:
    attention = [Attention(out_channels)] if grid in config.attention_grids else []
    return [ResidualBlock(in_channels, out_channels, config.dropout), *attention]


def _middle(config: ResnetConfig, channels: int) -> list[nn.Module]:
    attention = [Attention(channels)] if config.middle_attention else []
    return [
        ResidualBlock(channels, channels, config.dropout),
        *attention,
        ResidualBlock(channels, channels, config.dropout),
    ]
