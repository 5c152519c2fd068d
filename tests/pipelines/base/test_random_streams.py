"""Random streams are pure functions of key and position, spread evenly, and permutations are bijections."""

import itertools
import math

import numpy as np
import pytest

from pipelines.base.random_streams import bits, mix, mix_one, permutation_at, seed_of, uniforms


def splitmix64(state: int, count: int) -> list[int]:
    """The published generator, in plain integers."""
    found, mask = [], 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        found.append(z ^ (z >> 31))
    return found


def test_the_mixer_is_splitmix64():
    states = (1234567 + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    assert mix(states).tolist() == splitmix64(1234567, 5)
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]  # Vigna's reference output


def test_one_number_is_mixed_as_an_array_of_them():
    numbers = np.random.default_rng(0).integers(0, 2**64, 500, np.uint64)
    assert [mix_one(number) for number in numbers.tolist()] == mix(numbers).tolist()


def test_numbers_of_a_key_never_change():
    """Runs are resumed, and token datasets continued, by later versions."""
    assert seed_of((0, "posterior", "x")) == 2274470044355286584
    assert bits((5, "a", -3), np.arange(2), 2)[1].tolist() == [5875719111293109962, 17707008395670722325]


@pytest.mark.parametrize("length", range(1, 201))
def test_every_length_is_permuted(length):
    assert sorted(permutation_at((3, "x"), length, np.arange(length))) == list(range(length))


def test_positions_are_independent_of_the_others_asked_for():
    whole = permutation_at((1, "epoch", 2), 1000, np.arange(1000))
    some = np.array([[999, 0], [500, 500]])
    assert np.array_equal(permutation_at((1, "epoch", 2), 1000, some), whole[some])


@pytest.mark.parametrize("length", [10**7, 2**32, 10**18])
def test_long_permutations_collide_nowhere(length):
    positions = np.unique(np.random.default_rng(0).integers(0, length, 200_000))
    found = permutation_at((7,), length, positions)
    assert len(np.unique(found)) == len(positions) and found.min() >= 0 and found.max() < length


def chi_square(counts: np.ndarray) -> float:
    """Standard deviations between the chi-square statistic and its expectation."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("length", [3, 5, 7, 12, 50, 100])
def test_every_place_goes_everywhere_equally_often(length):
    table = np.zeros((length, length), np.int64)
    places = np.arange(length)
    for seed in range(4000):
        table[places, permutation_at((seed, "p"), length, places)] += 1
    assert max(abs(chi_square(row)) for row in table) < 5


@pytest.mark.slow
def test_all_orders_of_five_occur_equally_often():
    orders = {order: 0 for order in itertools.permutations(range(5))}
    for seed in range(12_000):
        orders[tuple(permutation_at((seed,), 5, np.arange(5)).tolist())] += 1
    assert abs(chi_square(np.array(list(orders.values())))) < 5


def test_neighbours_of_ten_million_are_scattered():
    found = permutation_at((0, "epoch", 0), 10**7, np.arange(100_000))
    assert abs(chi_square(np.histogram(found, 100, (0, 10**7))[0])) < 5
    steps = np.diff(found)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02 and len(np.unique(steps)) > 0.99 * len(steps)


def test_keys_give_different_streams():
    keys = [(0,), (1,), (0, 0), (0, "a"), (0, "b"), ("a", 0), (-1,), (2**64 - 2,)]
    assert len({seed_of(key) for key in keys}) == len(keys)
    assert len({bits(key, np.arange(1), 1).item() for key in keys}) == len(keys)


def test_uniforms_are_uniform():
    found = uniforms((5, "u"), np.arange(20_000), 3)
    assert found.min() >= 0 and found.max() < 1
    assert all(abs(chi_square(np.histogram(column, 50, (0, 1))[0])) < 5 for column in found.T)


@pytest.mark.parametrize(("length", "positions"), [(5, [5]), (5, [-1]), (0, [0]), (-1, []), (2**63, [0])])
def test_positions_outside_are_refused(length, positions):
    with pytest.raises(ValueError):
        permutation_at((0,), length, np.array(positions, dtype=np.int64))
