"""The score of the FactorVAE paper (Kim and Mnih 2018, arXiv 1802.05983, section 4)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.base.random_streams import uniforms
from pipelines.evaluate.disentanglement.rows import Rows

# disentanglement_lib's factor_vae_metric.gin: num_train, num_eval, batch_size, prune_dims.threshold
TRAIN_VOTES, TEST_VOTES, BATCH, INACTIVE = 10_000, 5_000, 64, 0.05
VOTES_AT_ONCE = 500


@dataclass(frozen=True)
class FactorVAEScore:
    """score: share of the test votes that the majority of the training votes predicts.

    train_accuracy: share of the training votes that it does. active_latents: how many vary at all (standard deviation
    at least INACTIVE); the others have no vote.
    """

    score: float
    train_accuracy: float
    active_latents: int


def factor_vae_score(rows: Rows, seed: int) -> FactorVAEScore:
    """A vote: one factor is held fixed in a batch, and the latent that varies least, by its own measure, names it.

    disentanglement_lib's simulator draws a batch with the factor held fixed. Here the factor's value is that of a
    random row, and the batch is drawn, with replacement, among the rows of that value. A value that one row alone has
    is never drawn, for nothing would vary; each factor needs a value that rows share.
    """
    deviation = rows.latents.std(axis=0, ddof=1)
    active = deviation >= INACTIVE
    if not active.any():
        return FactorVAEScore(0.0, 0.0, 0)
    latents, num_factors = rows.latents[:, active] / deviation[active], rows.factors.shape[1]
    random = uniforms((seed, "factor vae votes"), np.arange(TRAIN_VOTES + TEST_VOTES), 2 + BATCH)
    chosen = (random[:, 0] * num_factors).astype(np.int64)
    named = np.empty_like(chosen)
    for factor in range(num_factors):
        here = np.flatnonzero(chosen == factor)
        batches = _rows_of_one_value(rows.factors[:, factor], random[here, 1:])
        named[here] = _least_varying(latents, batches)
    votes = np.zeros((2, num_factors, latents.shape[1]), np.int64)
    is_test = (np.arange(len(chosen)) >= TRAIN_VOTES).astype(np.int64)
    np.add.at(votes, (is_test, chosen, named), 1)
    majority = votes[0].argmax(0), np.arange(latents.shape[1])
    train, test = (float(part[majority].sum() / part.sum()) for part in votes)
    return FactorVAEScore(test, train, int(active.sum()))


def _rows_of_one_value(values: NDArray[np.int64], random: NDArray[np.float64]) -> NDArray[np.int64]:
    """(votes, BATCH) row numbers, one value a vote; `random` (votes, 1 + BATCH) chooses the value and the rows."""
    order = np.argsort(values, kind="stable")
    _, start, number, count = np.unique(values[order], return_index=True, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(count[number] > 1)
    value = number[repeated[(random[:, 0] * len(repeated)).astype(np.int64)]]
    return order[start[value][:, None] + (random[:, 1:] * count[value][:, None]).astype(np.int64)]


def _least_varying(latents: NDArray[np.float64], batches: NDArray[np.int64]) -> NDArray[np.int64]:
    """The latent with the least variance in each batch of rows."""
    blocks = np.array_split(batches, -(-len(batches) // VOTES_AT_ONCE) or 1)
    return np.concatenate([latents[block].var(axis=1).argmin(1) for block in blocks])
