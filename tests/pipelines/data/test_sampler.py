"""Which rows make up a batch: epochs are permutations, and a batch depends on seed and step alone."""

import pytest
import torch

from pipelines.base.random_streams import uniforms
from pipelines.data.sampler import BLOCK, batch_indices


def stream(length: int, batch_size: int, steps: int, seed: int = 3, start: int = 0, rank: int = 0, world: int = 1):
    batches = (batch_indices(seed, step, batch_size, length, rank, world) for step in range(start, steps))
    return [row for batch in batches for row in batch.tolist()]


@pytest.mark.parametrize(("length", "batch_size"), [(10, 4), (7, 7), (5, 12), (1, 3), (BLOCK + 5, 999)])
def test_every_epoch_is_a_permutation(length, batch_size):
    rows = stream(length, batch_size, steps=3 * length // batch_size + 3)
    epochs = [rows[i : i + length] for i in range(0, len(rows) - length + 1, length)]
    assert len(epochs) >= 3
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)


def test_epochs_and_seeds_differ():
    rows = stream(100, 10, steps=20)
    assert rows[:100] != rows[100:]
    assert rows != stream(100, 10, steps=20, seed=4)


@pytest.mark.parametrize("start", [1, 7, 19])
def test_any_start_gives_the_same_tail(start):
    assert stream(13, 4, steps=20, start=start) == stream(13, 4, steps=20)[4 * start :]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_concatenated_are_one_process(world):
    for step in range(9):
        shares = [batch_indices(5, step, 6, 11, rank, world) for rank in range(world)]
        assert torch.equal(torch.cat(shares), batch_indices(5, step, 6, 11))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of the 4 processes"):
        batch_indices(0, 0, 6, 100, world=4)


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        batch_indices(0, 0, 4, 0)


def test_the_order_is_pinned():
    """Another order would silently break the resuming of every run begun before."""
    assert batch_indices(0, 0, 8, 8).tolist() == [6, 0, 1, 3, 5, 7, 2, 4]


def test_random_numbers_depend_on_their_own_counter_only():
    counters = torch.arange(1000).numpy()
    whole = uniforms((1, "x"), counters, 3)
    assert (uniforms((1, "x"), counters[500:600], 3) == whole[500:600]).all()
    assert abs(whole.mean() - 0.5) < 0.02
    assert abs(whole.var() - 1 / 12) < 0.005
