import pytest
import torch

from prior import (
    SamplingRequest,
    generate,
    likelihood_ratio,
    most_likely,
    order_by_likelihood,
    ranking,
    sequence_logprobs,
)

LABELS = torch.tensor([0, 2, 1, 2])


def test_the_most_likely_come_first():
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -0.1], [-3.0, -3.0]])
    assert order_by_likelihood(logprobs).tolist() == [1, 0, 2]


def test_equals_keep_their_order():
    assert order_by_likelihood(torch.full((20, 3), -1.0)).tolist() == list(range(20))


def test_codes_move_with_their_likelihood(make_prior):
    generated = generate(make_prior(), SamplingRequest(range(6)))
    best = most_likely(generated, 2)
    for codes, logprobs in zip(best.codes, best.logprobs, strict=True):
        origin = [i for i in range(6) if torch.equal(generated.codes[i], codes)]
        assert torch.equal(generated.logprobs[origin[0]], logprobs)
    assert best.logprobs.sum(1).min() >= generated.logprobs.sum(1).sort(descending=True).values[1]


def test_more_than_there_are_is_refused(make_prior):
    with pytest.raises(ValueError, match=r"1\.\.2, got 3"):
        most_likely(generate(make_prior(), SamplingRequest(range(2))), 3)


@pytest.mark.parametrize("logits_per_pass", [1, 300, 10**9])
def test_the_likelihood_ratio_is_that_under_the_condition_over_that_alone(make_prior, monkeypatch, logits_per_pass):
    monkeypatch.setattr(ranking, "LOGITS_PER_PASS", logits_per_pass)
    prior = make_prior()
    drawn = generate(prior, SamplingRequest(range(4), LABELS))
    given, alone = sequence_logprobs(prior, drawn.codes, LABELS), sequence_logprobs(prior, drawn.codes)
    torch.testing.assert_close(likelihood_ratio(prior, drawn), (given - alone).sum(1), atol=1e-4, rtol=0)


def test_a_condition_that_says_nothing_explains_nothing(make_prior):
    prior = make_prior()
    with torch.no_grad():
        prior.network.token_embedding.weight[:3] = prior.network.token_embedding.weight[3]  # the null condition
    drawn = generate(prior, SamplingRequest(range(4), LABELS))
    torch.testing.assert_close(likelihood_ratio(prior, drawn), torch.zeros(4), atol=1e-4, rtol=0)


def test_samples_of_a_condition_are_on_average_more_likely_under_it(make_prior):
    prior = make_prior()
    labels = torch.arange(300) % 3
    assert likelihood_ratio(prior, generate(prior, SamplingRequest(range(300), labels))).mean() > 0


def test_a_prior_that_never_saw_images_alone_has_no_likelihood_ratio(make_prior):
    prior = make_prior(condition_dropout=0.0)
    with pytest.raises(ValueError, match=r"condition_dropout=0\.0"):
        likelihood_ratio(prior, generate(prior, SamplingRequest(range(4), LABELS)))
