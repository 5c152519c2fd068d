"""Completion against exact enumeration: what the kept codes after a draw say of it."""

import pytest
import torch

from prior import (
    SamplingOptions,
    SamplingRequest,
    choose_candidates,
    effective_candidates,
    generate,
    importance_log_weights,
    kept_after_a_draw,
    sequence_logprobs,
)
from tests.prior.test_sampling import chi_square_quantile

COMPLETIONS, CANDIDATES = 1500, 24
KEPT = torch.tensor([-1, 2, -1, 0])
"""Of a 2 x 2 grid with three codes; 2 and 0 stay, nine completions are possible."""


@pytest.fixture
def prior(make_prior):
    return make_prior(grid=(2, 2, 1), num_codes=3, sharpen=3.0)


def exact_posterior(prior, kept, label):
    """p(drawn codes | kept codes) of all 3^m completions, whose numbers are the drawn codes read in base 3."""
    sequences = torch.cartesian_prod(*[torch.arange(3)] * len(kept))
    possible = sequences[((sequences == kept) | (kept < 0)).all(1)]
    joint = sequence_logprobs(prior, possible.view(-1, 2, 2, 1), torch.full((len(possible),), label)).sum(1).double()
    return joint.softmax(0)


def numbers(codes, kept):
    """The number of each image (b, 2, 2, 1) among the completions."""
    drawn = codes.flatten(1)[:, kept < 0]
    return drawn @ (3 ** torch.arange(drawn.shape[1]).flip(0))


def draw(prior, kept, count, label=1, **options):
    request = SamplingRequest(
        range(count), torch.full((count,), label), SamplingOptions(**options), kept.expand(count, -1)
    )
    return generate(prior, request)


def chi_square(observed, probabilities):
    expected = probabilities * observed.sum()
    alone = expected >= 5
    alone[expected.argmax()] = False
    observed, expected = (torch.cat([each[alone], each[~alone].sum()[None]]) for each in (observed, expected))
    return ((observed - expected) ** 2 / expected).sum().item(), len(expected) - 1


def test_codes_kept_after_a_draw_are_found():
    kept = torch.tensor([[5, 3, -1, 4, -1, 0], [5, 3, 1, 4, -1, -1], [1, 2, 3, 4, 5, 6], [-1, 2, 3, 4, 5, 6]])
    expected = [[0, 0, 0, 1, 0, 1], [0] * 6, [0] * 6, [0, 1, 1, 1, 1, 1]]
    assert torch.equal(kept_after_a_draw(kept), torch.tensor(expected, dtype=torch.bool))


@pytest.mark.parametrize("first", [0, 1, 3])
def test_completions_of_a_prefix_are_exact(prior, first):
    """A single candidate each: the draws follow the exact distribution."""
    kept = torch.tensor([2, 0, 1, -1])
    kept[first:] = -1
    observed = numbers(draw(prior, kept, 6_000).codes, kept).bincount(minlength=3 ** int((kept < 0).sum())).double()
    statistic, freedom = chi_square(observed, exact_posterior(prior, kept, 1))
    assert statistic < chi_square_quantile(freedom)


def test_a_draw_alone_does_not_follow_the_codes_kept_after_it(prior):
    """What the resampling is for; without a difference the tests of it would say nothing."""
    observed = numbers(draw(prior, KEPT, COMPLETIONS).codes, KEPT).bincount(minlength=9).double()
    statistic, freedom = chi_square(observed, exact_posterior(prior, KEPT, 1))
    assert statistic > 5 * chi_square_quantile(freedom)


def test_weighted_draws_are_the_exact_distribution(prior):
    out = draw(prior, KEPT, 30_000)
    weights = importance_log_weights(out.logprobs, KEPT.expand(30_000, -1)).softmax(0)
    found = torch.zeros(9, dtype=torch.double).index_add_(0, numbers(out.codes, KEPT), weights)
    torch.testing.assert_close(found, exact_posterior(prior, KEPT, 1), atol=0.015, rtol=0)


def test_chosen_candidates_follow_the_exact_distribution(prior):
    out = draw(prior, KEPT, COMPLETIONS * CANDIDATES)
    log_weights = importance_log_weights(out.logprobs, KEPT.expand(len(out.codes), -1)).view(COMPLETIONS, CANDIDATES)
    chosen = choose_candidates(log_weights, range(10**6, 10**6 + COMPLETIONS))
    codes = numbers(out.codes, KEPT).view(COMPLETIONS, CANDIDATES).gather(1, chosen[:, None])[:, 0]
    statistic, freedom = chi_square(codes.bincount(minlength=9).double(), exact_posterior(prior, KEPT, 1))
    assert statistic < chi_square_quantile(freedom)


def test_the_weight_is_the_likelihood_of_the_codes_kept_after_a_draw(prior):
    out = draw(prior, KEPT, 5, guidance_scale=2.0, temperature=0.5)
    expected = sequence_logprobs(prior, out.codes, torch.ones(5, dtype=torch.long))[:, [1, 3]].sum(1)
    found = importance_log_weights(out.logprobs, KEPT.expand(5, -1))
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=0)


def test_codes_after_the_last_given_one_are_drawn_and_weigh_nothing():
    logprobs = torch.tensor([[-1.0, -2.0, -4.0, -8.0]])
    assert importance_log_weights(logprobs, torch.tensor([[-1, 3]])).tolist() == [-2.0]
    assert importance_log_weights(logprobs, torch.tensor([[3, 3]])).tolist() == [0.0]


def test_a_candidate_of_weight_zero_is_never_chosen():
    log_weights = torch.tensor([-torch.inf, -1e6, -torch.inf, -1e6 - 1]).repeat(1000, 1)
    assert choose_candidates(log_weights, range(1000)).unique().tolist() == [1, 3]


def test_the_choice_depends_on_the_seed_of_its_completion_alone():
    log_weights = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    together = choose_candidates(log_weights, range(6))
    alone = [choose_candidates(log_weights[i : i + 1], [i]) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


def test_the_effective_number_of_candidates():
    log_weights = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, -torch.inf, -torch.inf, -torch.inf], [5.0, 5.0, -99, -99]])
    torch.testing.assert_close(effective_candidates(log_weights), torch.tensor([4.0, 1.0, 2.0]))
