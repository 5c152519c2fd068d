"""Images of which a part is to be redrawn, and the codes that are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.data.preprocess import Preprocess, prepare_image
from pipelines.models.image_masks import codes_under, grow_mask, prepare_mask
from pipelines.models.image_pipeline import ImageGenerationPipeline, images_per_pass
from prior import kept_after_a_draw

Pictures = Image.Image | Sequence[Image.Image] | Tensor


@dataclass(frozen=True)
class MaskedImages:
    """Images in [0, 1] of which the pixels in `mask` are to be redrawn.

    `codes` are those of the whole images; `redrawn` marks those of every cell that has a pixel in the mask.
    """

    image: Float[Tensor, "n c h w"]
    mask: Bool[Tensor, "n h w"]
    codes: Int[Tensor, " n *codes"]
    redrawn: Bool[Tensor, " n *codes"]

    @property
    def kept_codes(self) -> Int[Tensor, "n m"]:
        """As `prior.SamplingRequest` takes them: -1 where a code is redrawn."""
        return self.codes.masked_fill(self.redrawn, -1).flatten(1)

    @property
    def exact(self) -> bool:
        """Whether all kept codes come before the first that is redrawn. Then the draws follow the prior exactly."""
        return not kept_after_a_draw(self.kept_codes).any()


def mask_images(
    pipeline: ImageGenerationPipeline, image: Pictures, mask_image: Pictures, margin: int = 0
) -> MaskedImages:
    """Encode images, and find the codes that are to be redrawn. See `complete_images`.

    Raises:
        UserError: images or masks of another size or number than expected, or a mask without a pixel.
    """
    preprocess, grids = pipeline.tokenizer.preprocess, pipeline.prior.spec.code_grids
    images, masks = _prepared(image, preprocess), _prepared_masks(mask_image, preprocess)
    if margin < 0:
        raise UserError(f"margin: found {margin}, expected 0 or more")
    if len(masks) not in (1, len(images)):
        raise UserError(f"mask_image: found {len(masks)} masks for {len(images)} images, expected one or one for each")
    if not masks.flatten(1).any(1).all():
        raise UserError("mask_image: marks no pixel, so that nothing would be redrawn; white marks what is redrawn")
    masks = masks.expand(len(images), -1, -1)
    return MaskedImages(images, masks, _codes(pipeline, images), codes_under(grow_mask(masks, margin), grids))


@torch.inference_mode()
def _codes(pipeline: ImageGenerationPipeline, images: Float[Tensor, "n c h w"]) -> Int[Tensor, " n *codes"]:
    """Every pass has one size, as in `ImageGenerationPipeline.decode`: codes do not depend on other images."""
    model, size = pipeline.tokenizer.model, images_per_pass(pipeline.device.type, images.shape[-1])
    padded = torch.cat([images, images.new_zeros(-len(images) % size, *images.shape[1:])])
    parts = [model.encode(part.to(pipeline.device)).codes for part in padded.split(size)]
    return torch.cat([part.cpu() for part in parts if part is not None])[: len(images)].long()


def _prepared(image: Pictures, preprocess: Preprocess) -> Float[Tensor, "n c h w"]:
    if not isinstance(image, Tensor):
        pictures = [image] if isinstance(image, Image.Image) else list(image)
        if not pictures:
            raise UserError("image: found an empty list, expected at least one image")
        return torch.stack([prepare_image(each, preprocess) for each in pictures]) / 255
    images = image[None] if image.ndim == 3 else image
    expected = (preprocess.channels, preprocess.size, preprocess.size)
    if tuple(images.shape[1:]) != expected or not len(images):
        raise UserError(f"image: found the shape {tuple(image.shape)}, expected (n, {', '.join(map(str, expected))})")
    images = (images / 255 if images.dtype == torch.uint8 else images.float()).cpu()
    if not ((images >= 0) & (images <= 1)).all():  # nan too
        found = f"{images.min():.6g} to {images.max():.6g} in a tensor of {image.dtype}"
        raise UserError(f"image: found {found}, expected 0 to 1, or 0 to 255 in one of torch.uint8")
    return images


def _prepared_masks(mask: Pictures, preprocess: Preprocess) -> Bool[Tensor, "n h w"]:
    if not isinstance(mask, Tensor):
        pictures = [mask] if isinstance(mask, Image.Image) else list(mask)
        if not pictures:
            raise UserError("mask_image: found an empty list, expected at least one mask")
        return torch.stack([prepare_mask(each, preprocess) for each in pictures])
    masks, size = mask[None] if mask.ndim == 2 else mask, preprocess.size
    if tuple(masks.shape[1:]) != (size, size) or masks.dtype != torch.bool:
        found = f"{tuple(mask.shape)} of {mask.dtype}"
        raise UserError(f"mask_image: found {found}, expected (n, {size}, {size}) or ({size}, {size}) of torch.bool")
    return masks.cpu()
