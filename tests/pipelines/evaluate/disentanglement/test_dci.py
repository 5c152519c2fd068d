"""DCI: matrices of importance whose entropies are known, and trees on data whose importances are."""

import math
import sys

import numpy as np
import pytest

from pipelines.base.errors import UserError
from pipelines.evaluate.disentanglement.dci import completeness, dci_score, disentanglement
from pipelines.evaluate.disentanglement.rows import Rows

EYE = np.eye(4)
HALF = 1 - math.log(2) / math.log(4)  # two of four with equal shares
MIXED = np.array([[0.75, 0.0], [0.25, 1.0]])
KNOWN = {
    "one latent a factor": (EYE, 1, 1),
    "scale": (7 * EYE, 1, 1),
    "unused latents": (np.vstack([EYE, np.zeros((2, 4))]), 1, 1),
    "two latents a factor": (np.vstack([EYE[:2, :2], EYE[:2, :2]]), 1, HALF),
    "two factors a latent": (np.hstack([EYE[:2, :2], EYE[:2, :2]]), HALF, 1),
    "all alike": (np.ones((4, 4)), 0, 0),
    "nothing": (np.zeros((4, 3)), 0, 0),
    # weights 0.75 / 2 and 1.25 / 2; the second latent serves the factors in shares 0.2 and 0.8
    "weighted": (
        MIXED,
        0.375 + 0.625 * (1 + 0.2 * math.log2(0.2) + 0.8 * math.log2(0.8)),
        0.5 * (1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) + 0.5,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_disentanglement_of_known_importances(name):
    assert disentanglement(KNOWN[name][0]) == pytest.approx(KNOWN[name][1], abs=1e-6)


@pytest.mark.parametrize("name", KNOWN)
def test_completeness_of_known_importances(name):
    assert completeness(KNOWN[name][0]) == pytest.approx(KNOWN[name][2], abs=1e-6)


@pytest.fixture
def scikit_learn():
    pytest.importorskip("sklearn", reason="the extra smalti[disentanglement] is not installed")


@pytest.mark.usefixtures("scikit_learn")
def test_a_perfect_representation_scores_one_in_all(make_rows):
    found = dci_score(*make_rows(300, noise=0.01).split(), seed=0)
    scores = found.disentanglement, found.completeness, found.informativeness, found.train_accuracy
    assert scores == pytest.approx((1, 1, 1, 1), abs=1e-3)
    assert found.importance == pytest.approx(np.eye(3), abs=1e-3)


@pytest.mark.usefixtures("scikit_learn")
def test_noise_is_fitted_and_informs_nobody(make_rows):
    found = dci_score(*make_rows(240, mix=np.zeros((3, 3)), noise=1).split(), seed=0)
    assert found.disentanglement < 0.1 and found.completeness < 0.1
    assert found.train_accuracy > 0.9 and found.informativeness < 0.5  # chance is 0.36


@pytest.mark.usefixtures("scikit_learn")
def test_order_and_scale_of_latents_do_not_matter(make_rows):
    train, test = make_rows(240, mix=np.eye(3) + 0.3, noise=0.05).split()
    other = [Rows(rows.latents[:, [2, 0, 1]] * [4, 0.5, 8], rows.factors) for rows in (train, test)]
    here, there = dci_score(train, test, seed=0), dci_score(*other, seed=0)
    assert there.disentanglement == pytest.approx(here.disentanglement, abs=0.02)
    assert there.importance == pytest.approx(here.importance[[2, 0, 1]], abs=0.05)  # up to ties of the trees


@pytest.mark.usefixtures("scikit_learn")
def test_it_is_a_function_of_the_seed(make_rows):
    rows = make_rows(60)
    twice = Rows(rows.latents[:, [2, 2]], rows.factors[:, [2, 2]])  # one latent twice: ties everywhere
    train, test = twice.split()
    first, again, other = (dci_score(train, test, seed).importance for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_without_scikit_learn_the_extra_is_named(make_rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install smalti\[disentanglement\]"):
        dci_score(*make_rows(30).split(), seed=0)
