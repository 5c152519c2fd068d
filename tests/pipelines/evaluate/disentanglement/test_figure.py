"""The heat map: its size follows the matrix, and it shows the cells."""

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluate.disentanglement import disentanglement, draw_mutual_information
from pipelines.evaluate.disentanglement.figure import MAX_LATENTS

NAMES = ("shape", "colour", "size")


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def draw(tmp_path, make_rows):
    def drawn(mix, title=""):
        rows = make_rows(200, mix=mix, noise=0.01)
        report = disentanglement(rows.latents, rows.factors, NAMES, 0, ("mig",))
        return pixels(draw_mutual_information(tmp_path / "figure.png", report, title))

    return drawn


def test_a_row_a_latent_and_no_more_than_can_be_read(draw):
    few, many, more = (draw(np.resize(np.eye(3), (3, d))).shape[0] for d in (3, MAX_LATENTS + 1, 60))
    assert few < many == more


def dark(image: np.ndarray) -> np.ndarray:
    """Pixels of cells that tell much: the darkest blues of the scale, left of its bar."""
    left = image[:, : image.shape[1] * 3 // 4]
    return (left[..., 2] - left[..., 0] > 60) & (left[..., 0] < 60)


def correlation(mask: np.ndarray) -> float:
    rows, columns = np.nonzero(mask)
    return np.corrcoef(rows, columns)[0, 1]


def test_the_dark_cells_are_those_that_tell_most(draw):
    diagonal, turned = dark(draw(np.eye(3))), dark(draw(np.eye(3)[:, ::-1]))
    assert correlation(diagonal) > 0.8
    assert correlation(turned) < -0.8


def test_the_title_is_shown(draw):
    assert not np.array_equal(draw(np.eye(3), "a beta-VAE")[:60], draw(np.eye(3))[:60])
