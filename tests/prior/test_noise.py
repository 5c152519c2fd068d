"""Gumbel noise by seed, position and code: the bits by a second implementation, the numbers by their distribution."""

import math

import pytest
import torch

from prior.noise import CPU_BLOCK, GumbelNoise, gumbel, random_bits

CPU = torch.device("cpu")
WORD32, WORD64 = 2**32 - 1, 2**64 - 1


def mix64(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD64
    return z ^ (z >> 31)


def literal_bits(seed: int, position: int, code: int) -> int:
    """In Python's integers, which know no sign and no overflow."""
    golden = 0x9E3779B97F4A7C15
    row = mix64((mix64((seed + golden) & WORD64) + (position + 1) * golden) & WORD64)
    x = ((row & WORD32) + code * 0x9E3779B9) & WORD32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD32
    x ^= row >> 32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD32
    return x ^ (x >> 16)


def test_bits_are_those_of_integers_without_sign():
    seeds = (0, 1, 7, 2**31, 2**63 - 1, 2**63, 2**64 - 1)
    found = random_bits(GumbelNoise(seeds, 1, 1, CPU).seeds, torch.tensor([0, 1, 1023]), 50)
    expected = [[[literal_bits(s, p, c) for c in range(50)] for s in seeds] for p in (0, 1, 1023)]
    assert (found.long() & WORD32).tolist() == expected


def test_the_bits_of_a_seed_never_change():
    """Samples of a seed are the same in every version: whoever changes these numbers says so in CHANGELOG."""
    found = random_bits(torch.tensor([0, 42]), torch.tensor([0, 5]), 2)
    assert (found.long() & WORD32).tolist() == [
        [[2481401185, 2830668716], [1879190611, 3625455112]],
        [[3115963306, 689942452], [134798413, 2520329848]],
    ]


def test_noise_is_the_double_logarithm_of_the_upper_31_bits():
    bits = torch.tensor([-(2**31), -1, 0, 1, 2, 3, 12345678, 2**31 - 1], dtype=torch.int32)
    for word, found in zip(bits.tolist(), gumbel(bits).tolist(), strict=True):
        v = min((((word & WORD32) >> 1) + 0.5) / 2**31, 1 - 2**-24)
        assert found == pytest.approx(-math.log(-math.log1p(-v)), rel=1e-5, abs=1e-5)


def test_noise_is_finite_and_bits_are_kept():
    ends = torch.tensor([0, 1, -1, -2, 2**31 - 1, -(2**31)], dtype=torch.int32)
    before = ends.clone()
    assert gumbel(ends).isfinite().all()
    assert torch.equal(ends, before)


def test_noise_has_the_gumbel_distribution():
    noise = torch.cat([GumbelNoise(range(100), 20, 200, CPU).at(i).flatten() for i in range(20)]).double()
    cumulative = torch.exp(-torch.exp(-noise)).sort().values
    n = len(cumulative)
    distance = (cumulative - (torch.arange(n) + 0.5) / n).abs().max() * math.sqrt(n)
    assert distance < 1.95  # Kolmogorov and Smirnov, 99.9 %


def test_the_largest_values_are_as_frequent_as_they_should_be():
    bits = torch.cat([random_bits(torch.arange(64), torch.tensor([p]), 8192).flatten() for p in range(8)])
    noise = gumbel(bits)
    for bound in (5.0, 8.0, 10.0):
        expected = len(noise) * -math.expm1(-math.exp(-bound))
        assert abs((noise > bound).sum().item() - expected) < 4 * math.sqrt(expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("lag", [1, 2, 8])
def test_neighbours_are_not_correlated(axis, lag):
    noise = gumbel(random_bits(torch.arange(60), torch.arange(60), 60)).movedim(axis, 0).double()
    first, second = noise[lag:].flatten(), noise[:-lag].flatten()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert correlation.abs() < 4 / math.sqrt(len(first))


def test_no_number_depends_on_batch_block_or_size_of_the_codebook():
    seeds, length = range(5), 40
    whole = gumbel(random_bits(torch.arange(5), torch.arange(length), 300))
    for rows, codes in ((5, 300), (1, 300), (5, 7)):
        noise = GumbelNoise(seeds[:rows], length, codes, CPU)
        noise.size = 16  # several blocks, the last one shorter
        for position in (*range(length), 3, 39, 0):
            assert torch.equal(noise.at(position), whole[position, :rows, :codes])


def test_a_block_takes_bounded_memory():
    noise = GumbelNoise(range(4), 10**6, 100, CPU)
    assert noise.at(0).shape == (4, 100)
    assert noise.block.numel() <= CPU_BLOCK
    assert GumbelNoise(range(4), 10**6, CPU_BLOCK, CPU).size == 1


def test_no_noise_is_made_beyond_the_last_position():
    noise = GumbelNoise(range(4), 10, 3, CPU)
    noise.at(4)
    assert noise.block.shape == (6, 4, 3)
