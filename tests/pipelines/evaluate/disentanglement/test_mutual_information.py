"""Mutual information and MIG: joint frequencies computed by hand, and scikit-learn's mutual information."""

import math

import numpy as np
import pytest

from pipelines.evaluate.disentanglement.mutual_information import BINS, discretize, mutual_information
from pipelines.evaluate.disentanglement.rows import Rows


@pytest.fixture
def four_rows() -> Rows:
    """The first latent is the first factor; the joint of the second latent and factor is [[2, 0], [1, 1]] / 4."""
    latents = [[0.0, -5.0], [0.0, 7.0], [1.0, -5.0], [1.0, 7.0]]
    return Rows(np.array(latents), np.array([[0, 4], [0, 4], [1, 4], [1, 9]]))


INFORMATION = 0.75 * math.log(4 / 3) + 0.25 * math.log(4) - 0.5 * math.log(2)  # H(second factor) - H(it | latent)
ENTROPY = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)


def test_mutual_information_is_that_of_the_joint_frequencies(four_rows):
    found = mutual_information(four_rows)
    assert found.matrix == pytest.approx(np.array([[math.log(2), INFORMATION], [0, INFORMATION]]), abs=1e-12)
    assert found.entropy == pytest.approx([math.log(2), ENTROPY])


def test_mig_is_the_mean_of_the_normalised_gaps(four_rows):
    found = mutual_information(four_rows)
    assert found.gaps == pytest.approx([1, 0], abs=1e-12)  # both latents tell as much about the second factor
    assert found.mig == pytest.approx(0.5)


def test_a_gap_is_a_share_of_the_factors_entropy():
    rows = Rows(np.array([[0.0, 0], [0, 0], [1, 0], [2, 0]]), np.array([[0], [0], [0], [1]]))
    assert mutual_information(rows).gaps == pytest.approx([1])


def test_bins_are_equal_intervals_of_the_latents_range():
    latent = np.array([0.0, 0.049, 0.051, 0.5, 0.99, 1.0])
    bins = discretize(np.stack([latent, 30 - 6 * latent], axis=1))
    assert bins[:, 0].tolist() == [0, 0, 1, 10, 19, 19]
    assert bins.min() == 0 and bins.max() == BINS - 1


def test_a_constant_latent_tells_nothing(make_rows):
    rows = make_rows(100, mix=np.diag([1, 1, 0]))
    assert mutual_information(rows).matrix[2] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_perfect_representation_has_mig_one_and_a_rotated_one_less(make_rows):
    turn = np.array([[1, 1, 0], [-1, 1, 0], [0, 0, math.sqrt(2)]]) / math.sqrt(2)
    perfect, rotated = mutual_information(make_rows(3000)).mig, mutual_information(make_rows(3000, mix=turn)).mig
    assert perfect > 0.99
    assert rotated < 0.7


def test_noise_has_mig_zero(make_rows):
    assert mutual_information(make_rows(5000, mix=np.zeros((3, 6)), noise=1)).mig < 0.01


def test_a_repeated_latent_leaves_no_gap(make_rows):
    assert mutual_information(make_rows(1000, mix=np.hstack([np.eye(3)] * 2))).mig == pytest.approx(0, abs=1e-12)


def test_order_and_scale_of_latents_do_not_matter(make_rows):
    rows = make_rows(1000, mix=np.ones((3, 3)) + np.eye(3), noise=0.2)
    other = Rows(rows.latents[:, [2, 0, 1]] * [0.25, 16, 4], rows.factors)
    assert mutual_information(other).matrix == pytest.approx(mutual_information(rows).matrix[[2, 0, 1]])


def test_it_agrees_with_scikit_learn(make_rows):
    metrics = pytest.importorskip("sklearn.metrics", reason="the extra smalti[disentanglement] is not installed")
    rows = make_rows(500, noise=0.3)
    bins = discretize(rows.latents)
    expected = [[metrics.mutual_info_score(f, latent) for f in rows.factors.T] for latent in bins.T]
    assert mutual_information(rows).matrix == pytest.approx(np.array(expected))


def test_it_is_the_figure_that_disentanglement_lib_gives(make_rows):
    """Computed once by its `_compute_mig`."""
    assert mutual_information(make_rows(300, mix=np.eye(3) + 0.5, noise=0.1)).mig == pytest.approx(0.516597382707)
