"""Each square patch of pixels alone, through dense layers that all patches share.

The patch embedding of ViT-VQGAN (Yu et al. 2022, arXiv 2110.04627, section 3.1) without attention between patches: a
code says what one patch shows, and nothing of its neighbours. Equal patches have equal codes wherever they stand. So
pictures that are made of few different patches (pixel art, glyphs, tiles, maps) can become codes with little loss, and
leave a prior little to guess. Photographs show the borders of the patches.
"""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from tokenizer.conditions import ConditionConfig, hidden_layers, input_channels, input_layers
from tokenizer.layers import Sequential
from tokenizer.options import Options


class PatchConfig(Options):
    """Patches of `patch_size` x `patch_size` pixels; `widths`: of the hidden layers between a patch and its latent,
    those of the encoder in this order, those of the decoder in reverse.
    """

    kind: Literal["patch"] = "patch"
    patch_size: int = Field(default=4, gt=0, examples=[2])
    widths: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(128,), min_length=1, max_length=1000, examples=[(8, 6)]
    )

    def grid_side(self, image_size: int) -> int:
        """The side of the latent grid. Raises ValueError when the image cannot be cut into whole patches."""
        if image_size % self.patch_size:
            raise ValueError(
                f"image_size {image_size} is not a multiple of {self.patch_size}, the patch_size of this patch backbone"
            )
        return image_size // self.patch_size


def patch_encoder(
    config: PatchConfig, in_channels: int, out_channels: int, image_size: int, condition: ConditionConfig | None
) -> Sequential:
    """(b, in_channels, H, W) -> (b, out_channels, h, w)."""
    widths = (in_channels * config.patch_size**2 + input_channels(condition), *config.widths)
    cut, last = nn.PixelUnshuffle(config.patch_size), nn.Conv2d(widths[-1], out_channels, 1)
    return Sequential(cut, *input_layers(condition), *_dense(widths, condition), last)


def patch_decoder(
    config: PatchConfig, in_channels: int, out_channels: int, image_size: int, condition: ConditionConfig | None
) -> Sequential:
    """(b, in_channels, h, w) -> (b, out_channels, H, W)."""
    widths = (in_channels + input_channels(condition), *reversed(config.widths))
    last = nn.Conv2d(widths[-1], out_channels * config.patch_size**2, 1)
    return Sequential(*input_layers(condition), *_dense(widths, condition), last, nn.PixelShuffle(config.patch_size))


def _dense(widths: tuple[int, ...], condition: ConditionConfig | None) -> list[nn.Module]:
    """Dense layers of each position alone, which are 1x1 convolutions."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 1), *hidden_layers(condition, after), nn.SiLU()]
    return layers
