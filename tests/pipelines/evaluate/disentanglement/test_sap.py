"""SAP on data whose accuracies are known by hand."""

import itertools
import sys

import numpy as np
import pytest

from pipelines.base.errors import UserError
from pipelines.evaluate.disentanglement.rows import Rows
from pipelines.evaluate.disentanglement.sap import sap_score

WITHOUT = "the extra smalti[disentanglement] is not installed"


@pytest.fixture(autouse=True)
def scikit_learn():
    pytest.importorskip("sklearn", reason=WITHOUT)


def every_pair(scale: float = 1.0, copies: int = 50) -> Rows:
    """Two factors of two values, each combination equally often; each latent is one factor."""
    factors = np.array(list(itertools.product([0, 1], [0, 1])) * copies)
    return Rows(scale * (factors - 0.5), factors)


def test_separated_factors_are_predicted_wholly_by_one_latent_and_by_chance_by_the_other():
    found = sap_score(every_pair(), every_pair(copies=10))
    assert found.accuracies.tolist() == [[1, 0.5], [0.5, 1]]
    assert found.score == 0.5


def test_the_gap_is_between_the_two_best_latents():
    rows = every_pair()
    twice = Rows(np.hstack([rows.latents, rows.latents[:, :1]]), rows.factors)
    assert sap_score(twice, twice).score == pytest.approx((0 + 0.5) / 2)


def test_accuracy_is_that_of_the_test_rows():
    train, test = every_pair(), every_pair(copies=10)
    test.factors[:10] = 1 - test.factors[:10]
    assert sap_score(train, test).accuracies.diagonal().tolist() == [0.75, 0.75]


def test_rare_values_weigh_as_much_as_frequent_ones():
    """Where 90 rows of the frequent value and the 10 of the rare one lie together, the rare one is predicted."""
    values = np.array([[0] * 990 + [1] * 10] * 2).T
    latent = np.array([-1.0] * 900 + [1.0] * 100)
    rows = Rows(np.stack([latent, -latent], axis=1), values)
    assert sap_score(rows, rows).accuracies == pytest.approx(np.full((2, 2), 0.91))


def test_the_order_of_latents_does_not_matter(make_rows):
    train, test = make_rows(400, mix=np.eye(3) + 0.5, noise=0.2).split()
    swapped = [Rows(rows.latents[:, [2, 0, 1]], rows.factors) for rows in (train, test)]
    assert sap_score(*swapped).score == sap_score(train, test).score


def test_it_is_the_same_every_time(make_rows):
    train, test = make_rows(400, mix=np.eye(3) + 0.5, noise=0.2).split()
    assert np.array_equal(sap_score(train, test).accuracies, sap_score(train, test).accuracies)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install smalti\[disentanglement\]"):
        sap_score(every_pair(), every_pair())


def test_it_is_the_figure_that_disentanglement_lib_gives(make_rows):
    """Computed once by its `_compute_sap`; C = 1 would give 0.35, C = 0.001 0.04."""
    assert sap_score(*make_rows(300, mix=np.eye(3) + 0.5, noise=0.1).split()).score == pytest.approx(0.233333, abs=1e-6)
