"""Networks between pixels and latent grid. A new one is a file and a `case` in each function below.

The options of each have `grid_side(image_size)`, the side of the latent grid; it raises ValueError for a size that the
network cannot take. With a `condition` a network is called as `network(x, embedding)`, embedding (b, dim).
"""

from typing import Annotated

from pydantic import Field

from tokenizer.backbones.conv import ConvConfig, conv_decoder, conv_encoder
from tokenizer.backbones.dvae import DvaeConfig, dvae_decoder, dvae_encoder
from tokenizer.backbones.mlp import MlpConfig, mlp_decoder, mlp_encoder
from tokenizer.backbones.patch import PatchConfig, patch_decoder, patch_encoder
from tokenizer.backbones.resnet import ResnetConfig, resnet_decoder, resnet_encoder
from tokenizer.conditions import ConditionConfig
from tokenizer.layers import Sequential

BackboneConfig = Annotated[
    ConvConfig | MlpConfig | ResnetConfig | DvaeConfig | PatchConfig, Field(discriminator="kind")
]


def build_encoder(
    config: BackboneConfig,
    in_channels: int,
    out_channels: int,
    image_size: int,
    condition: ConditionConfig | None = None,
) -> Sequential:
    """(b, in_channels, H, W) -> (b, out_channels, h, w) with h = w = config.grid_side(H).

    Raises ValueError when the network cannot take images of this size.
    """
    config.grid_side(image_size)
    match config:
        case ConvConfig():
            return conv_encoder(config, in_channels, out_channels, image_size, condition)
        case MlpConfig():
            return mlp_encoder(config, in_channels, out_channels, image_size, condition)
        case ResnetConfig():
            return resnet_encoder(config, in_channels, out_channels, image_size, condition)
        case DvaeConfig():
            return dvae_encoder(config, in_channels, out_channels, image_size, condition)
        case PatchConfig():
            return patch_encoder(config, in_channels, out_channels, image_size, condition)


def build_decoder(
    config: BackboneConfig,
    in_channels: int,
    out_channels: int,
    image_size: int,
    condition: ConditionConfig | None = None,
) -> Sequential:
    """(b, in_channels, h, w) -> (b, out_channels, H, W) with h = w = config.grid_side(H).

    Raises ValueError when the network cannot give images of this size.
    """
    config.grid_side(image_size)
    match config:
        case ConvConfig():
            return conv_decoder(config, in_channels, out_channels, image_size, condition)
        case MlpConfig():
            return mlp_decoder(config, in_channels, out_channels, image_size, condition)
        case ResnetConfig():
            return resnet_decoder(config, in_channels, out_channels, image_size, condition)
        case DvaeConfig():
            return dvae_decoder(config, in_channels, out_channels, image_size, condition)
        case PatchConfig():
            return patch_decoder(config, in_channels, out_channels, image_size, condition)
