import math

import pytest
import torch

from prior import CountBaselines


def markov_codes(images, noise, num_codes=6, side=8, depth=1, seed=0):
    """Each code follows from the one before, except for a fraction of noise."""
    generator = torch.Generator().manual_seed(seed)
    length = side * side * depth
    codes = torch.zeros(images, length, dtype=torch.long)
    random = torch.randint(0, num_codes, (images, length), generator=generator)
    noisy = torch.rand(images, length, generator=generator) < noise
    for i in range(length):
        codes[:, i] = torch.where(noisy[:, i], random[:, i], (codes[:, i - 1] + 1) % num_codes if i else 0)
    return codes.view(images, side, side, depth)


@pytest.mark.parametrize("depth", [1, 2])
def test_probabilities_sum_to_one_in_every_context(depth):
    model = CountBaselines(4).fit(markov_codes(3, 0.2, num_codes=3, side=2, depth=depth))  # code 3 is never seen
    for d in range(depth):
        for previous in range(5):
            pairs = (d * 5 + previous) * 4 + torch.arange(4)
            for probabilities in model.probabilities(pairs):
                assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
                assert probabilities.min() > 0


def test_the_bits_approach_the_entropy_of_the_source():
    noise, k = 0.3, 6
    hit = 1 - noise + noise / k
    entropy = -hit * math.log2(hit) - (1 - hit) * math.log2(noise / k)
    bits = CountBaselines(k).fit(markov_codes(400, noise)).bits_per_token(markov_codes(200, noise, seed=1))
    assert bits.bigram == pytest.approx(entropy, abs=0.03)
    assert bits.unigram == pytest.approx(math.log2(k), abs=0.03)


def test_a_bigram_of_independent_codes_costs_little_more_than_a_unigram():
    codes = torch.multinomial(
        torch.arange(1.0, 65), 4_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    train, held_out = codes.view(-1, 4, 4, 1).chunk(2)
    bits = CountBaselines(64).fit(train).bits_per_token(held_out)
    assert bits.bigram < bits.unigram * 1.1


def test_fitting_in_parts_equals_fitting_at_once():
    codes, held_out = markov_codes(20, 0.3), markov_codes(5, 0.3, seed=1)
    parts = CountBaselines(6).fit(codes[:7]).fit(codes[7:])
    assert parts.bits_per_token(held_out) == CountBaselines(6).fit(codes).bits_per_token(held_out)


def test_each_quantizer_has_its_own_tables():
    codes = torch.stack([torch.zeros(50, 4, 4, dtype=torch.long), torch.ones(50, 4, 4, dtype=torch.long)], -1)
    bits = CountBaselines(2).fit(codes).bits_per_token(codes)
    assert bits.unigram < 0.01 and bits.bigram < 0.01


def test_unseen_codes_cost_a_finite_number_of_bits():
    bits = CountBaselines(1000).fit(torch.zeros(1, 2, 2, 1, dtype=torch.long))
    assert math.isfinite(bits.bits_per_token(torch.full((1, 2, 2, 1), 999)).bigram)


def test_scoring_before_fitting_is_refused():
    with pytest.raises(ValueError, match="nothing yet"):
        CountBaselines(4).bits_per_token(torch.zeros(1, 2, 2, 1, dtype=torch.long))


def test_other_quantizers_is_refused():
    with pytest.raises(ValueError, match="2 quantizers, those before had 1"):
        CountBaselines(4).fit(torch.zeros(1, 2, 2, 1, dtype=torch.long)).fit(torch.zeros(1, 2, 2, 2, dtype=torch.long))
