"""Black-and-white images drawn from grey ones: the intensity of a pixel is its probability of being white.

Held-out images are drawn once, each as a pure function of a seed and of its row, so that figures of all runs are about
the same images. Training images are drawn anew each time they are seen (dynamic binarisation: Salakhutdinov, Murray
2008, https://doi.org/10.1145/1390156.1390266) or once (static).
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipelines.base.random_streams import Key, bits
from pipelines.data.source import Split

PIXELS_PER_WORD = 4  # a pixel is decided by 16 of 64 random bits


class Binarize(BaseModel):
    """`method`: "dynamic" draws a training image anew each time it is seen and a held-out image once, "static" draws
    every image once, "threshold" makes pixels of 128 and more white. `seed` is that of the images drawn once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: Literal["dynamic", "static", "threshold"]
    seed: int = Field(default=0, ge=0)


def binarize_rows(
    images: UInt8[Tensor, "n c h w"], config: Binarize, split: Split, rows: NDArray[np.int64]
) -> UInt8[Tensor, "n c h w"]:
    """The images of these `rows` (n,) of a split, drawn once: 0 or 255. The input is left alone."""
    if config.method == "threshold":
        return (images >= 128).to(torch.uint8) * 255
    return draw_binary(images, (config.seed, "binarize", split), rows)


def draw_binary(images: UInt8[Tensor, "n c h w"], key: Key, counters: NDArray[np.int64]) -> UInt8[Tensor, "n c h w"]:
    """255 with probability value / 255 (to 2**-16; 0 and 255 never change), else 0.

    Image i depends on its pixels, the key and counters[i] alone.
    """
    pixels = images.flatten(1).numpy()
    words = bits(key, counters, -(-pixels.shape[1] // PIXELS_PER_WORD))
    draws = words.astype("<u8", copy=False).view("<u2")[:, : pixels.shape[1]]
    np.maximum(draws, 1, out=draws)  # no number makes a pixel of value 0 white
    # 257 v + 1 of the 65,536 numbers make a value v > 0 white; exact would be 257 v + v / 255.
    white = draws <= pixels * np.uint16(257)
    return torch.from_numpy(white.view(np.uint8) * np.uint8(255)).view(images.shape)
