"""The figure of a continuous latent: each panel shows its own content."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.evaluate.latent_health_figure import draw_latent_health
from tokenizer.latent_health import LatentMoments


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def health(spread, shift=0.0, kl=True):
    """Units whose posterior's mean varies over two images by `spread`, largest first or last."""
    mean = torch.stack([shift + torch.tensor(spread), shift - torch.tensor(spread)])
    moments = LatentMoments(len(spread))
    moments.update(mean, torch.ones_like(mean), mean.square() if kl else None)
    return moments.report()


@pytest.fixture
def draw(tmp_path):
    return lambda found: pixels(draw_latent_health(tmp_path / "figure.png", found))


def test_units_are_sorted(draw):
    assert np.array_equal(draw(health([0.3, 2.0, 1.0])), draw(health([2.0, 1.0, 0.3])))


def test_units_that_are_not_active_stand_on_red(draw):
    def red(image):
        return ((image[..., 0] > 230) & (image[..., 1] < 225) & (image[..., 1] > 190)).sum()

    none, half = red(draw(health([1.0, 1.0]))), red(draw(health([1.0, 0.0])))
    assert half > none + 20_000


def test_the_moments_of_the_aggregate_are_shown_below(draw):
    first, second = draw(health([1.0, 0.5], kl=False)), draw(health([1.0, 0.5], shift=0.3, kl=False))
    rows = np.flatnonzero((first != second).any(axis=(1, 2)))
    assert len(rows) and rows.min() > first.shape[0] / 2


@pytest.mark.parametrize("spread", [[0.0] * 3, [1.0] * 3000, [1.0]])
@pytest.mark.parametrize("kl", [True, False])
def test_any_number_of_units_and_any_state_can_be_drawn(draw, spread, kl):
    assert draw(health(spread, kl=kl)).size
