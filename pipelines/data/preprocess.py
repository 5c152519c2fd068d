"""From any image to the square uint8 tensor that a recipe asks for. It is part of a tokenizer's identity."""

from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

# Where PIL looks for an orientation, beside the tags of TIFF files (tag_v2).
EXIF_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
Byte = Annotated[int, Field(ge=0, le=255)]
MAX_SIZE = 16384  # pixels a side: an RGB image of 768 MiB


class Preprocess(BaseModel):
    """Colour, size and shape of what the encoder sees: uint8, channels first, values 0 … 255.

    `crop`: "center" takes the largest centred square, "none" stretches, "pad" fits the whole image and fills the rest
    with `background` (red, green, blue), which also shows through transparent pixels. `apply_exif_orientation`: turn
    images upright as their EXIF data says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    mode: Literal["L", "RGB"] = "RGB"
    size: int = Field(ge=1, le=MAX_SIZE)
    resample: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    crop: Literal["center", "none", "pad"] = "center"
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    apply_exif_orientation: bool = True

    @property
    def channels(self) -> Literal[1, 3]:
        return 1 if self.mode == "L" else 3


def prepare_image(image: Image.Image, config: Preprocess) -> UInt8[Tensor, "c size size"]:
    """One image, prepared: EXIF orientation, depth and colour, then crop and resize.

    Steps that change nothing are skipped. Sixteen-bit grey keeps its upper byte. Grey from colour is ITU-R 601 luma.
    Cropping comes before resizing, which for the largest square is the same image for less work.

    Raises:
        ValueError: a floating point image, whose range of values is not known.
        OSError and others: whatever PIL finds wrong with the file when the pixels are decoded here.
    """
    image.load()
    if config.apply_exif_orientation and (EXIF_KEYS & image.info.keys() or hasattr(image, "tag_v2")):
        image = ImageOps.exif_transpose(image)
    image = to_mode(image, config.mode, config.background)
    pixels = torch.from_numpy(np.array(image))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
    return to_square(pixels, config)


def to_mode(image: Image.Image, mode: Literal["L", "RGB"], background: tuple[int, int, int]) -> Image.Image:
    """Eight bits a channel, transparency laid on `background`, then grey or RGB."""
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("a floating point image (mode F) has no known range of values")
    if image.mode.startswith("I"):  # I;16, I;16B, and I, which PIL uses for 16-bit files too
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    if image.mode not in ("1", "L", "RGB"):  # not every mode has a way of its own to grey
        image = image.convert("RGB")
    return image.convert(mode)


def to_square(pixels: UInt8[Tensor, "*n c h w"], config: Preprocess) -> UInt8[Tensor, "*n c size size"]:
    """Crop, pad or stretch to size x size."""
    height, width = pixels.shape[-2:]
    if (height, width) == (config.size, config.size):
        return pixels
    target = (config.size, config.size)
    if config.crop == "center" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[..., top : top + side, left : left + side]
    elif config.crop == "pad" and height != width:
        longest = max(height, width)
        target = (max(1, round(height * config.size / longest)), max(1, round(width * config.size / longest)))
    if pixels.shape[-2:] != target:
        pixels = _resized(pixels, target, config)
    if target != (config.size, config.size):
        pixels = _padded(pixels, config)
    return pixels.contiguous()


def _resized(pixels: Tensor, target: tuple[int, int], config: Preprocess) -> Tensor:
    # Imported here because it is slow to import, and a recipe is checked without it.
    from torchvision.transforms.v2 import InterpolationMode, functional

    exact = config.resample == "nearest"
    mode = InterpolationMode.NEAREST_EXACT if exact else InterpolationMode(config.resample)
    return functional.resize(pixels, list(target), interpolation=mode, antialias=config.antialias)


def _padded(pixels: Tensor, config: Preprocess) -> Tensor:
    height, width = pixels.shape[-2:]
    colour = Image.new("RGB", (1, 1), config.background).convert(config.mode).getpixel((0, 0))
    fill = torch.tensor(colour, dtype=torch.uint8).reshape(-1, 1, 1)
    square = fill.expand(*pixels.shape[:-2], config.size, config.size).clone()
    top, left = (config.size - height) // 2, (config.size - width) // 2
    square[..., top : top + height, left : left + width] = pixels
    return square
