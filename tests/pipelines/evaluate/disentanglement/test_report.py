"""All scores at once: which rows they see, what is refused, and what is written."""

import json
import sys

import numpy as np
import pytest

from pipelines.base.errors import UserError
from pipelines.evaluate.disentanglement import disentanglement, report
from pipelines.evaluate.disentanglement.rows import Rows

NAMES = ("shape", "colour", "size")
QUICK = ("mig", "factor_vae")


@pytest.fixture
def rows(make_rows) -> Rows:
    return make_rows(200, mix=np.eye(3) + 0.3, noise=0.1)


def test_the_whole_report_is_a_function_of_the_seed(rows):
    pytest.importorskip("sklearn", reason="the extra smalti[disentanglement] is not installed")
    first, again = (disentanglement(rows.latents, rows.factors, NAMES, seed=3).as_dict() for _ in range(2))
    assert first == again


def test_it_is_plain_json(rows):
    pytest.importorskip("sklearn", reason="the extra smalti[disentanglement] is not installed")
    content = disentanglement(rows.latents, rows.factors, NAMES, 0, ("sap",)).as_dict()
    assert json.loads(json.dumps(content)) == content
    assert set(content["mig_of_factor"]) == set(NAMES) and np.shape(content["mutual_information"]) == (3, 3)
    assert content["mig"] == pytest.approx(np.mean(list(content["mig_of_factor"].values())))
    assert content["dci"] is None and 0 <= content["sap"]["score"] <= 1


def test_float32_and_small_integers_are_taken(rows):
    latents, factors = rows.latents.astype(np.float32), rows.factors.astype(np.uint8)
    assert disentanglement(latents, factors, NAMES, 0, QUICK).mig > 0


def test_the_predictors_train_on_two_thirds_and_test_on_the_others(make_rows):
    train, test = make_rows(100).split()
    assert (len(train), len(test)) == (67, 33)
    train, test = make_rows(20_000).split()
    assert (len(train), len(test)) == (10_000, 5_000)


def test_rows_are_shuffled_and_stay_whole(make_rows):
    rows = make_rows(50, noise=0.1)
    order = [rows.latents.tolist().index(latent) for latent in rows.shuffled(0).latents.tolist()]
    assert sorted(order) == list(range(50)) and order != list(range(50))
    assert np.array_equal(rows.shuffled(0).factors, rows.factors[order])
    assert not np.array_equal(rows.shuffled(0).factors, rows.shuffled(1).factors)


def test_mutual_information_sees_at_most_as_many_rows_as_in_the_study(rows, monkeypatch):
    monkeypatch.setattr(report, "MAX_TRAIN", 50)
    found = disentanglement(rows.latents, rows.factors, NAMES, 0, QUICK)
    values = rows.shuffled(0).factors[:50, 2]
    share = np.bincount(values) / 50
    assert found.rows == 200 and found.information.entropy[2] == pytest.approx(-(share * np.log(share)).sum())


def test_a_factor_with_one_value_is_left_out_and_named(rows):
    factors = np.insert(rows.factors, 1, 7, axis=1)
    found = disentanglement(rows.latents, factors, ("shape", "ground", "colour", "size"), 0, QUICK)
    assert found.left_out == ("ground",) and found.factors == NAMES
    assert found.mig == disentanglement(rows.latents, rows.factors, NAMES, 0, QUICK).mig


def test_without_scikit_learn_the_scores_that_need_it_are_refused_and_the_others_are_there(rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install smalti\[disentanglement\]"):
        disentanglement(rows.latents, rows.factors, NAMES, 0)
    found = disentanglement(rows.latents, rows.factors, NAMES, 0, QUICK)
    assert found.factor_vae is not None and found.sap is None and found.dci is None


def test_shapes_that_do_not_belong_together_are_refused(rows):
    with pytest.raises(ValueError, match="expected"):
        disentanglement(rows.latents[:10], rows.factors, NAMES, 0, QUICK)
    with pytest.raises(ValueError, match="expected"):
        disentanglement(rows.latents, rows.factors, NAMES[:2], 0, QUICK)
    with pytest.raises(ValueError, match="expected integers"):
        disentanglement(rows.latents, rows.factors / 2, NAMES, 0, QUICK)


def test_what_no_score_can_be_made_of_is_a_users_mistake(rows):
    latents = rows.latents.copy()
    latents[3, 1] = np.nan
    own = rows.factors.copy()
    own[:, 1] = np.arange(200)
    for match, representation, factors in (
        ("not finite", latents, rows.factors),
        ("1 latents", rows.latents[:, :1], rows.factors),
        ("1 factors", rows.latents, rows.factors * [0, 0, 1]),
        ("'colour'.*values that rows share", rows.latents, own),
        ("found 2 rows", rows.latents[:2], rows.factors[:2]),
    ):
        with pytest.raises(UserError, match=match):
            disentanglement(representation, factors, NAMES, 0, QUICK)


def test_training_rows_of_one_value_are_refused_by_the_factors_name(rows):
    pytest.importorskip("sklearn", reason="the extra smalti[disentanglement] is not installed")
    last = np.flatnonzero((rows.shuffled(0).latents[-1] == rows.latents).all(1))
    factors = rows.factors.copy()
    factors[:, 0] = 0
    factors[last, 0] = 1
    with pytest.raises(UserError, match="'shape': one value only in the 134 rows"):
        disentanglement(rows.latents, factors, NAMES, 0)
