"""The FactorVAE score: what the vote finds, and a plain loop over batches of one value."""

import numpy as np
import pytest

from pipelines.base.random_streams import uniforms
from pipelines.evaluate.disentanglement import factor_vae
from pipelines.evaluate.disentanglement.factor_vae import factor_vae_score
from pipelines.evaluate.disentanglement.rows import Rows


@pytest.fixture(autouse=True)
def fewer_votes(monkeypatch):
    monkeypatch.setattr(factor_vae, "TRAIN_VOTES", 600)
    monkeypatch.setattr(factor_vae, "TEST_VOTES", 400)


def reference(rows: Rows, seed: int, train_votes: int, test_votes: int) -> tuple[float, float]:
    """Vote by vote; test accuracy before train accuracy."""
    variance = rows.latents.var(axis=0, ddof=1)
    kept = [i for i in range(len(variance)) if variance[i] >= 0.05**2]
    tables = np.zeros((2, rows.factors.shape[1], len(variance)))
    for vote, random in enumerate(uniforms((seed, "factor vae votes"), np.arange(train_votes + test_votes), 66)):
        factor = int(random[0] * rows.factors.shape[1])
        values = rows.factors[:, factor].tolist()
        shared = [row for row in sorted(range(len(rows)), key=values.__getitem__) if values.count(values[row]) > 1]
        value = values[shared[int(random[1] * len(shared))]]
        same = [row for row in range(len(rows)) if values[row] == value]
        batch = rows.latents[[same[int(u * len(same))] for u in random[2:]]]
        least = min(kept, key=lambda i: batch[:, i].var(ddof=1) / variance[i])
        tables[int(vote >= train_votes), factor, least] += 1
    train, test = tables
    right = [(table[train.argmax(0), range(len(variance))]).sum() / table.sum() for table in (test, train)]
    return right[0], right[1]


@pytest.mark.parametrize("votes", [(600, 400), (12, 9), (5, 20)])
def test_it_is_the_majority_vote_of_the_least_varying_latents(make_rows, monkeypatch, votes):
    monkeypatch.setattr(factor_vae, "TRAIN_VOTES", votes[0])
    monkeypatch.setattr(factor_vae, "TEST_VOTES", votes[1])
    rows = make_rows(120, mix=np.eye(3, 4) + 0.5, noise=0.6)
    rows.latents[:, 3] *= 0.01
    rows.factors[0, 1] = 77  # a value of its own
    found = factor_vae_score(rows, seed=5)
    assert (found.score, found.train_accuracy) == pytest.approx(reference(rows, 5, *votes))
    assert found.active_latents == 3 and 0.4 < found.score < 0.95


def test_a_perfect_representation_scores_one(make_rows):
    found = factor_vae_score(make_rows(500, noise=0.02), seed=0)
    assert (found.score, found.train_accuracy, found.active_latents) == (1, 1, 3)


def test_noise_scores_what_the_most_frequent_factor_does(make_rows):
    assert factor_vae_score(make_rows(2000, mix=np.zeros((3, 5)), noise=1), seed=0).score < 0.45


def test_inactive_latents_have_no_vote(make_rows):
    rows = make_rows(500, mix=np.hstack([np.eye(3), np.full((3, 1), 0.01)]), noise=0.02)
    assert factor_vae_score(rows, seed=0) == factor_vae_score(Rows(rows.latents[:, :3], rows.factors), seed=0)


def test_without_an_active_latent_the_score_is_zero(make_rows):
    found = factor_vae_score(make_rows(100, mix=np.zeros((3, 3)), noise=0.01), seed=0)
    assert (found.score, found.train_accuracy, found.active_latents) == (0, 0, 0)


def test_order_and_scale_of_latents_do_not_matter(make_rows):
    rows = make_rows(300, mix=np.eye(3) + 0.5, noise=0.4)
    other = Rows(rows.latents[:, [2, 0, 1]] * [3, 20, 1.7] + 5, rows.factors)
    assert factor_vae_score(other, seed=0) == factor_vae_score(rows, seed=0)


def test_it_is_a_function_of_the_seed(make_rows):
    rows = make_rows(300, mix=np.eye(3) + 0.5, noise=0.4)
    scores = [factor_vae_score(rows, seed) for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


def test_blocks_of_votes_change_nothing(make_rows, monkeypatch):
    rows = make_rows(100, mix=np.eye(3) + 0.5, noise=0.4)
    whole = factor_vae_score(rows, seed=0)
    monkeypatch.setattr(factor_vae, "VOTES_AT_ONCE", 7)
    assert factor_vae_score(rows, seed=0) == whole
