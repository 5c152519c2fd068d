import math

import pytest
import torch

from tokenizer import psnr


def test_psnr_is_the_log_of_the_mean_squared_error():
    black = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    assert psnr(torch.full((1, 1, 4, 4), 0.1), black).item() == pytest.approx(-20 * math.log10(0.1), rel=1e-5)


def test_bytes_and_unit_floats_are_the_same_original():
    images, originals = torch.rand(3, 3, 4, 4), torch.randint(256, (3, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(psnr(images, originals), psnr(images, originals.double() / 255))


def test_identical_images_and_any_above_it_have_a_hundred_decibels():
    x = torch.rand(2, 1, 4, 4)
    assert psnr(x, x).tolist() == [100, 100]
    assert psnr(x + 1e-7, x).tolist() == [100, 100]


def test_half_precision_images_are_compared_in_float64():
    x = torch.rand(2, 1, 64, 64).half()
    noisy = (x.double() + 1e-3).half()
    expected = -10 * (noisy.double() - x.double()).square().flatten(1).mean(1).log10()
    torch.testing.assert_close(psnr(noisy, x), expected.float())


def test_a_difference_of_a_hundredth_of_a_grey_level_is_not_lost_in_rounding():
    originals = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4) * 16
    images = originals.double() / 255 + 2e-5
    assert psnr(images, originals).item() == pytest.approx(-20 * math.log10(2e-5), abs=1e-4)
