"""Networks between pixels and latent grid. A new one is a file and a `case` in each function below."""

from typing import Annotated

from pydantic import Field

from tokenizer.backbones.conv import ConvConfig, conv_decoder, conv_encoder
from tokenizer.backbones.resnet import ResnetConfig, resnet_decoder, resnet_encoder
from tokenizer.layers import Sequential

BackboneConfig = Annotated[ConvConfig | ResnetConfig, Field(discriminator="kind")]


def build_encoder(config: BackboneConfig, in_channels: int, out_channels: int, image_size: int) -> Sequential:
    """(b, in_channels, H, W) -> (b, out_channels, h, w) with h = H / config.downsampling."""
    check_image_size(config, image_size)
    match config:
        case ConvConfig():
            return conv_encoder(config, in_channels, out_channels)
        case ResnetConfig():
            return resnet_encoder(config, in_channels, out_channels, image_size)


def build_decoder(config: BackboneConfig, in_channels: int, out_channels: int, image_size: int) -> Sequential:
    """(b, in_channels, h, w) -> (b, out_channels, H, W) with H = h * config.downsampling."""
    check_image_size(config, image_size)
    match config:
        case ConvConfig():
            return conv_decoder(config, in_channels, out_channels)
        case ResnetConfig():
            return resnet_decoder(config, in_channels, out_channels, image_size)


def check_image_size(config: BackboneConfig, image_size: int) -> None:
    """Raises ValueError when the image size is no multiple of the downsampling, or attention is at no grid there is."""
    if image_size % config.downsampling:
        raise ValueError(
            f"image_size {image_size} is not a multiple of {config.downsampling}, "
            f"the downsampling of this {config.kind} backbone"
        )
    if isinstance(config, ResnetConfig) and not set(config.attention_grids) <= set(config.grids(image_size)):
        raise ValueError(
            f"attention_grids {list(config.attention_grids)} must be among {config.grids(image_size)}, "
            f"the sides of the grids between {image_size} pixels and the codes"
        )
