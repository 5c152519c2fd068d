"""GroupNorm residual blocks with attention at chosen grids: the network of VQGAN and latent diffusion.

Esser et al. 2021, arXiv 2012.09841, table 7. Level by level the same layout as taming-transformers and diffusers.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from tokenizer.backbones.latent_grid import grid_to_vector, halved, vector_to_grid
from tokenizer.conditions import ConditionConfig, input_channels, input_layers
from tokenizer.layers import Attention, Downsample, ResidualBlock, Sequential, Upsample, group_norm
from tokenizer.options import TRAINING_ONLY, Options


class ResnetConfig(Options):
    """Level i runs at `width * multipliers[i]` channels; between two levels the grid is halved.

    dense_widths: the latent is one vector behind dense layers of these widths ([]: behind the smallest grid). None: the
        latent is a grid.
    """

    kind: Literal["resnet"] = "resnet"
    width: int = Field(default=64, gt=0)
    multipliers: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(1, 2, 4), min_length=1, max_length=16)
    residual_blocks: int = Field(default=2, gt=0, le=1000)  # per level; the decoder has one more, as in VQGAN
    attention_grids: tuple[Annotated[int, Field(gt=0)], ...] = ()  # sides of the grids whose blocks attend
    middle_attention: bool = True
    dropout: Annotated[float, TRAINING_ONLY] = Field(default=0.0, ge=0, lt=1)
    dense_widths: tuple[Annotated[int, Field(gt=0)], ...] | None = Field(
        default=None, max_length=1000, examples=[(), (8, 6)]
    )

    def grid_side(self, image_size: int) -> int:
        """The side of the latent grid, 1 for a vector.

        Raises ValueError when the image cannot be halved so often, or attention is at no grid there is.
        """
        last = halved(image_size, len(self.multipliers) - 1, self.kind)
        if not set(self.attention_grids) <= set(self.grids(image_size)):
            raise ValueError(
                f"attention_grids {list(self.attention_grids)} must be among {self.grids(image_size)}, "
                f"the sides of the grids between {image_size} pixels and the codes"
            )
        return last if self.dense_widths is None else 1

    def grids(self, image_size: int) -> list[int]:
        """The side of the grid at each level, from the pixels down."""
        return [image_size // 2**level for level in range(len(self.multipliers))]


def resnet_encoder(
    config: ResnetConfig, in_channels: int, out_channels: int, image_size: int, condition: ConditionConfig | None
) -> Sequential:
    """(b, in_channels, H, W) -> (b, out_channels, h, w)."""
    channels, grids = config.width, config.grids(image_size)
    layers = [*input_layers(condition), nn.Conv2d(in_channels + input_channels(condition), channels, 3, padding=1)]
    for multiplier, grid in zip(config.multipliers, grids, strict=True):
        for _ in range(config.residual_blocks):
            layers += _block(config, channels, config.width * multiplier, grid, condition)
            channels = config.width * multiplier
        if grid != grids[-1]:
            layers.append(Downsample(channels))
    layers += [*_middle(config, channels, condition), group_norm(channels, condition), nn.SiLU()]
    if config.dense_widths is None:
        return Sequential(*layers, nn.Conv2d(channels, out_channels, 3, padding=1))
    return Sequential(
        *layers, *grid_to_vector(channels, grids[-1], config.dense_widths, out_channels, nn.SiLU, condition)
    )


def resnet_decoder(
    config: ResnetConfig, in_channels: int, out_channels: int, image_size: int, condition: ConditionConfig | None
) -> Sequential:
    """(b, in_channels, h, w) -> (b, out_channels, H, W)."""
    channels, grids = config.width * config.multipliers[-1], config.grids(image_size)
    layers, in_channels = input_layers(condition), in_channels + input_channels(condition)
    if config.dense_widths is not None:
        layers += vector_to_grid(in_channels, config.dense_widths, channels, grids[-1], nn.SiLU, condition)
        in_channels = channels
    layers += [nn.Conv2d(in_channels, channels, 3, padding=1), *_middle(config, channels, condition)]
    for multiplier, grid in reversed(list(zip(config.multipliers, grids, strict=True))):
        for _ in range(config.residual_blocks + 1):
            layers += _block(config, channels, config.width * multiplier, grid, condition)
            channels = config.width * multiplier
        if grid != image_size:
            layers.append(Upsample(channels))
    layers += [group_norm(channels, condition), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)]
    return Sequential(*layers)


def _block(
    config: ResnetConfig, in_channels: int, out_channels: int, grid: int, condition: ConditionConfig | None
) -> list[nn.Module]:
    attention = [Attention(out_channels)] if grid in config.attention_grids else []
    return [ResidualBlock(in_channels, out_channels, config.dropout, condition), *attention]


def _middle(config: ResnetConfig, channels: int, condition: ConditionConfig | None) -> list[nn.Module]:
    attention = [Attention(channels)] if config.middle_attention else []
    before, after = (ResidualBlock(channels, channels, config.dropout, condition) for _ in range(2))
    return [before, *attention, after]
