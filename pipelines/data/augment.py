"""Random changes of training images, each a pure function of the seed and of the example's place in the stream."""

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipelines.base.random_streams import uniforms


class Augment(BaseModel):
    """`horizontal_flip`: mirror half of the images. `shift`: move each by up to so many pixels in both directions,
    which is a random crop of the image padded by its own edge.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    horizontal_flip: bool = False
    shift: int = Field(default=0, ge=0)


def augment(
    images: UInt8[Tensor, "b c h w"], config: Augment, seed: int, positions: np.ndarray
) -> UInt8[Tensor, "b c h w"]:
    """Augment a batch whose examples stand at `positions` (b,) of the training stream. The input is left alone."""
    if not config.horizontal_flip and not config.shift:
        return images
    flip, down, right = torch.from_numpy(uniforms((seed, "augment"), positions, 3)).unbind(1)
    if config.shift:
        images = _shifted(images, _offsets(down, config.shift), _offsets(right, config.shift))
    if config.horizontal_flip:
        images = torch.where((flip < 0.5)[:, None, None, None], images.flip(-1), images)
    return images


def _offsets(uniform: Tensor, reach: int) -> Tensor:
    return (uniform * (2 * reach + 1)).long() - reach


def _shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    batch, _, height, width = images.shape
    rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width) - right[:, None]).clamp(0, width - 1)
    # Indices on both sides of the slice put the channels last.
    return (
        images[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        .permute(0, 3, 1, 2)
        .contiguous()
    )
