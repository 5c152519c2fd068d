"""SSIM: how close a reconstruction is to its original, one figure per image. For PSNR see `tokenizer.psnr`."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # the constants of Wang et al. 2004, section III.C


def ssim(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Structural similarity of images in [0, 1] (Wang et al. 2004, eq. 13), mean over windows, then over channels.

    Windows are 11 x 11 Gaussians (sigma 1.5) that lie wholly inside the image, as in the paper and in scikit-image;
    torchmetrics pads by reflection, so its figure differs by a hundredth or so on small images. Raises ValueError for
    an image smaller than the window.
    """
    channels, height, width = x.shape[1:]
    if min(height, width) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, got {height} x {width}")
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()

    def blur(image: Tensor) -> Tensor:  # separable: rows, then columns
        image = F.conv2d(image, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
        return F.conv2d(image, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)

    x, y = x.double(), y.double()  # variances are differences of nearly equal numbers
    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x.square()
    variance_y = blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2)
    )
    return similarity.flatten(1).mean(1).float()
