"""How close a reconstruction is to its original."""

from jaxtyping import Float
from torch import Tensor, uint8

PSNR_CEILING = 100.0  # dB, given to identical images, whose PSNR is infinite: means stay finite


def psnr(images: Float[Tensor, "b c h w"], originals: Tensor) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB, at most 100, of each image in [0, 1]: -10 log10(MSE) over pixels and channels.

    `originals` (b, c, h, w) are uint8, or floating point in [0, 1]. Computed in float64, returned in float32.
    """
    expected = originals.double() / 255 if originals.dtype == uint8 else originals.double()
    error = (images.double() - expected).square().flatten(1).mean(1)
    return (-10 * error.log10()).clamp(max=PSNR_CEILING).float()
