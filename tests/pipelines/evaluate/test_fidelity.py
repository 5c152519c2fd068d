"""SSIM (and PSNR) against references written a second time, in numpy, straight from the formulas."""

import math

import numpy as np
import pytest
import torch

from pipelines.evaluate.fidelity import ssim
from tokenizer import psnr


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 16, 20, generator=generator)
    return x, (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Window by window over one (c, h, w) pair."""
    axis = np.arange(11) - 5
    window = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for a, b in zip(x.astype(np.float64), y.astype(np.float64), strict=True):
        for row in range(a.shape[0] - 10):
            for column in range(a.shape[1] - 10):
                p, q = a[row : row + 11, column : column + 11], b[row : row + 11, column : column + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                luminance = (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
                values.append(luminance * (2 * cov + 9e-4) / (vp + vq + 9e-4))
    return float(np.mean(values))


def test_ssim_is_the_mean_over_windows(pair):
    x, y = pair
    expected = [reference_ssim(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-6)


def test_psnr_is_the_log_of_the_mean_squared_error(pair):
    x, y = pair
    expected = [
        10 * math.log10(1 / np.mean((a - b) ** 2, dtype=np.float64)) for a, b in zip(x.numpy(), y.numpy(), strict=True)
    ]
    assert psnr(x, y).tolist() == pytest.approx(expected, abs=1e-4)


def test_both_agree_with_torchmetrics(pair):
    functional = pytest.importorskip("torchmetrics.functional.image")
    x, y = pair
    options = {"data_range": 1.0, "reduction": "none", "return_full_image": True}
    _, full = functional.structural_similarity_index_measure(y, x, **options)
    inside = full[..., 5:-5, 5:-5].flatten(1).mean(1)  # torchmetrics pads by reflection; the paper does not pad
    assert torch.allclose(ssim(x, y), inside, atol=1e-4)
    theirs = functional.peak_signal_noise_ratio(y, x, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr(x, y), theirs, atol=1e-3)


def test_an_image_is_perfectly_like_itself(pair):
    x, _ = pair
    assert torch.equal(psnr(x, x), torch.full((3,), 100.0))
    assert torch.allclose(ssim(x, x), torch.ones(3))


def test_more_noise_is_always_worse(pair):
    x, _ = pair
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    near, far = x + 0.02 * noise, x + 0.2 * noise
    assert (psnr(x, near) > psnr(x, far)).all()
    assert (ssim(x, near) > ssim(x, far)).all()


def test_an_image_smaller_than_the_window_is_refused():
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
