import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import load, save

from prior import CountBaselines, baselines, pair_counts


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


def reference_bits(train, held_out, num_codes):
    """Interpolated Kneser-Ney and the Krichevsky-Trofimov unigram, word for word, with dictionaries."""
    quantizers = train.shape[-1]

    def pairs(codes):
        for row in codes.flatten(1).tolist():
            for i, code in enumerate(row):
                yield i % quantizers, row[i - 1] if i else "start", code

    counts = Counter(pairs(train))
    tokens, kinds, context_tokens, context_kinds, total, total_kinds = (Counter() for _ in range(6))
    for (q, previous, code), count in counts.items():
        tokens[q, code] += count
        kinds[q, code] += 1
        context_tokens[q, previous] += count
        context_kinds[q, previous] += 1
        total[q] += count
        total_kinds[q] += 1
    once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
    discount = (once + 1) / (once + 2 * twice + 2)
    unigram = bigram = length = 0
    for q, previous, code in pairs(held_out):
        length += 1
        unigram -= math.log2((tokens[q, code] + 0.5) / (total[q] + num_codes / 2))
        lower = (kinds[q, code] + 0.5) / (total_kinds[q] + num_codes / 2)
        seen = context_tokens[q, previous]
        rest = discount * context_kinds[q, previous] * lower
        bigram -= math.log2((max(counts[q, previous, code] - discount, 0) + rest) / seen if seen else lower)
    return unigram / length, bigram / length


@pytest.mark.parametrize("quantizers", [1, 2])
@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_the_bits_are_those_of_a_slow_reference(noise, quantizers, monkeypatch):
    monkeypatch.setattr(baselines, "CHUNK", 300)  # several chunks, of whole images
    train = markov_codes(30, noise, num_codes=9, depth=quantizers)
    held_out = markov_codes(9, noise, num_codes=9, depth=quantizers, seed=1)
    bits = CountBaselines(9).fit(train).bits_per_token(held_out)
    assert (bits.unigram, bits.bigram) == pytest.approx(reference_bits(train, held_out, 9), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_codes_of_any_integer_dtype_are_counted(dtype):
    codes, held_out = markov_codes(20, 0.3), markov_codes(5, 0.3, seed=1)
    expected = CountBaselines(6).fit(codes).bits_per_token(held_out)
    assert CountBaselines(6).fit(codes.to(dtype)).bits_per_token(held_out.to(dtype)) == expected


def test_counts_in_many_blocks_are_those_of_a_counter(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    size = 5 * 2**20
    monkeypatch.setattr(pair_counts, "BUFFER", 50_000)
    counts, expected = pair_counts.PairCounts(size), Counter()
    assert len(counts.blocks) == 5
    for _ in range(6):
        numbers = (torch.rand(30_000, generator=generator) ** 3 * size).long()
        counts.add(numbers)
        expected.update(numbers.tolist())
    found = {key: count for keys, values in counts for key, count in zip(keys.tolist(), values.tolist(), strict=True)}
    assert found == expected
    asked = torch.randint(0, size, (1000,), generator=generator).unique()
    assert counts.of(asked).tolist() == [expected[key] for key in asked.tolist()]


def test_counts_stop_at_the_largest_int32(monkeypatch):
    monkeypatch.setattr(pair_counts, "LARGEST_COUNT", 5)
    counts = pair_counts.PairCounts(10)
    counts.add(torch.full((9,), 3))
    assert counts.of(torch.tensor([3])).tolist() == [5]


@pytest.mark.parametrize("num_codes", [6, 3000])
def test_stored_counts_score_and_count_on_as_before(num_codes):
    codes, held_out = markov_codes(20, 0.3, depth=2), markov_codes(5, 0.3, depth=2, seed=1)
    fitted = CountBaselines(num_codes).fit(codes)
    stored = CountBaselines.from_tensors(load(save(fitted.to_tensors())))
    assert stored.bits_per_token(held_out) == fitted.bits_per_token(held_out)
    assert stored.fit(codes).bits_per_token(held_out) == fitted.fit(codes).bits_per_token(held_out)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors.pop("num_codes"),
        lambda tensors: tensors.pop("counts.0"),
        lambda tensors: tensors.update(num_codes=torch.tensor(3)),
        lambda tensors: tensors.update(num_codes=torch.tensor(2**40)),
        lambda tensors: tensors.update({"keys.0": tensors["keys.0"].flip(0)}),
        lambda tensors: tensors.update({"keys.0": tensors["keys.0"].long()}),
        lambda tensors: tensors.update({"keys.7": tensors["keys.0"]}),
    ],
)
def test_damaged_tensors_are_refused(damage):
    tensors = CountBaselines(6).fit(markov_codes(20, 0.3)).to_tensors()
    damage(tensors)
    with pytest.raises(ValueError, match=r"expected|out of range"):
        CountBaselines.from_tensors(tensors)


@pytest.mark.slow
def test_memory_follows_the_pairs_and_not_the_tokens():
    """10 million tokens, nearly all pairs different: 0.1.0 took 470 MB."""
    program = """
import resource, torch
from prior import CountBaselines
codes = torch.randint(0, 16384, (39_000, 16, 16, 1), dtype=torch.int32).to(torch.uint16)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
CountBaselines(16384).fit(codes[:10])
before = peak()
baselines = CountBaselines(16384)
for part in codes.split(1000):
    baselines.fit(part)
baselines.bits_per_token(codes[:1000])
print(peak() - before)
"""
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(grown) < 330
