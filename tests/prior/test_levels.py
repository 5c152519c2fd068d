"""Codes of several levels: one segment of the vocabulary each, with sizes, grids and quantizers of their own."""

import math
from typing import get_args

import pytest
import torch

from prior import (
    CachedDecoder,
    PriorPhase,
    SamplingOptions,
    SamplingRequest,
    TransformerConfig,
    Vocabulary,
    codes_to_tokens,
    generate,
    generate_naive,
    sequence_logprobs,
    tokens_to_codes,
)

LEVELS = {
    "small over large": [(5, (2, 2, 1)), (11, (3, 4, 1))],
    "large over small": [(11, (2, 2, 1)), (5, (2, 3, 1))],
    "quantizers": [(4, (2, 2, 2)), (7, (2, 3, 3))],
    "three": [(3, (1, 1, 1)), (6, (2, 2, 1)), (4, (2, 3, 2))],
}
every_vocabulary = pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
every_position = pytest.mark.parametrize("positions", get_args(TransformerConfig.model_fields["positions"].annotation))
OPTIONS = {
    "plain": {},
    "top_k": {"top_k": 6},
    "top_p": {"top_p": 0.8, "temperature": 0.7},
    "min_p": {"min_p": 0.2},
    "greedy": {"do_sample": False},
    "guided": {"guidance_scale": 2.5, "top_k": 6},
}


def random_codes(vocabulary, n=3):
    sizes = torch.tensor(vocabulary.code_sizes)
    return (torch.rand(n, vocabulary.code_length) * sizes).long().view(n, *vocabulary.code_axes)


@every_vocabulary
def test_ids_of_levels_follow_each_other_and_never_overlap(levels):
    vocabulary = Vocabulary.of_labels_and_levels(levels, 3)
    ranges, start = iter(vocabulary.id_ranges[1:]), 4
    for size, (rows, columns, quantizers) in levels:
        for position in range(rows * columns * quantizers):
            first = start + position % quantizers * size
            assert next(ranges) == range(first, first + size)
        start += size * quantizers
    assert start == vocabulary.size


@every_vocabulary
def test_tokens_give_back_the_codes(levels):
    vocabulary = Vocabulary.of_labels_and_levels(levels)
    codes = random_codes(vocabulary)
    tokens = codes_to_tokens(codes, vocabulary)
    assert all(int(t) in r for t, r in zip(tokens[0], vocabulary.id_ranges[1:], strict=True))
    assert torch.equal(tokens_to_codes(tokens, vocabulary), codes)


@every_vocabulary
def test_a_code_of_another_level_is_refused(levels):
    vocabulary = Vocabulary.of_labels_and_levels(levels)
    for position, size in enumerate(vocabulary.code_sizes):
        codes = torch.zeros(1, *vocabulary.code_axes, dtype=torch.long)
        codes[0, position] = size
        with pytest.raises(ValueError, match=rf"\[0, {size}\), found {size}"):
            codes_to_tokens(codes, vocabulary)


@every_vocabulary
def test_a_position_gives_all_its_probability_to_codes_of_its_own_level(levels, make_prior):
    prior = make_prior(levels=levels)
    logits = prior(random_codes(prior.vocabulary))
    finite = torch.arange(logits.shape[-1]) < torch.tensor(prior.vocabulary.code_sizes)[:, None]
    assert torch.equal(logits.isfinite(), finite.expand_as(logits))


@every_vocabulary
@every_position
def test_a_position_sees_exactly_the_codes_before_it(levels, positions, make_prior):
    prior = make_prior(levels=levels, positions=positions)
    vocabulary, tokens = prior.vocabulary, codes_to_tokens(random_codes(prior.vocabulary, 1), prior.vocabulary)
    embedded = prior.network.token_embedding(torch.cat([torch.zeros(1, 1, dtype=torch.long), tokens[:, :-1]], 1))
    embedded = embedded.detach().requires_grad_()
    prior.network.token_embedding.forward = lambda _: embedded
    logits = prior.logits(torch.zeros(1, 1, dtype=torch.long), tokens[:, :-1])
    for position, size in enumerate(vocabulary.code_sizes):
        own = logits[0, position, :size]
        (gradient,) = torch.autograd.grad((own * torch.randn(size)).sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(1) > 0
        assert reached.tolist() == [i <= position for i in range(vocabulary.code_length)]


@every_vocabulary
@every_position
def test_places_of_different_levels_have_different_embeddings(levels, positions, make_prior):
    prior = make_prior(levels=levels, positions=positions)
    if positions == "learned":
        table = prior.network.positions.table()
        assert table.shape[0] == prior.vocabulary.code_length
        assert len(table.detach().unique(dim=0)) == len(table)


@every_vocabulary
@every_position
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_cached_path_draws_what_the_naive_one_does(levels, positions, options, make_prior):
    prior = make_prior(levels=levels, positions=positions)
    request = SamplingRequest(range(4), torch.tensor([0, 1, 2, -1]), SamplingOptions(**options))
    naive = generate_naive(prior, request)
    for fixed_shapes in (False, True):
        fast = generate(prior, request, decoder=CachedDecoder(prior, fixed_shapes))
        assert torch.equal(fast.codes, naive.codes)
        torch.testing.assert_close(fast.logprobs, naive.logprobs, atol=2e-4, rtol=1e-4)
    sizes = torch.tensor(prior.vocabulary.code_sizes)
    assert (naive.codes < sizes).all() and naive.codes.shape == (4, *prior.vocabulary.code_axes)
    torch.testing.assert_close(
        naive.logprobs, sequence_logprobs(prior, naive.codes, request.condition), atol=2e-4, rtol=1e-4
    )


@every_vocabulary
def test_a_prompt_may_end_anywhere(levels, make_prior):
    prior = make_prior(levels=levels)
    codes = random_codes(prior.vocabulary, 2)
    for given in range(prior.vocabulary.code_length + 1):
        request = SamplingRequest(range(2), kept_codes=codes[:, :given])
        naive, fast = generate_naive(prior, request), generate(prior, request)
        assert torch.equal(fast.codes, naive.codes) and torch.equal(naive.codes[:, :given], codes[:, :given])


@every_vocabulary
def test_codes_of_every_level_can_be_kept(levels, make_prior):
    prior = make_prior(levels=levels)
    codes = random_codes(prior.vocabulary, 2)
    drawn = torch.rand(codes.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    request = SamplingRequest(range(2), kept_codes=codes.flatten(1).masked_fill(drawn.flatten(1), -1))
    naive, fast = generate_naive(prior, request), generate(prior, request)
    assert torch.equal(fast.codes, naive.codes) and torch.equal(naive.codes[~drawn], codes[~drawn])


@every_vocabulary
def test_the_loss_is_the_mean_over_the_codes_of_all_levels(levels, make_prior):
    prior = make_prior(levels=levels, condition_dropout=0)
    codes, labels = random_codes(prior.vocabulary), torch.tensor([0, 1, 2])
    loss, metrics = PriorPhase(prior)({"codes": codes, "label": labels})
    torch.testing.assert_close(loss, -sequence_logprobs(prior, codes, labels).mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prior.parameters())
    assert metrics["bits_per_token"] == pytest.approx(loss.item() / math.log(2))


def test_one_level_is_the_vocabulary_that_it_always_was():
    assert Vocabulary.of_labels_and_levels([(7, (2, 3, 2))], 4) == Vocabulary.of_labels_and_codes(7, (2, 3, 2), 4)
    assert Vocabulary.of_labels_and_codes(7, (2, 3, 2)).codes[0].name == "codes"
