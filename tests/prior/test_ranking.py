import pytest
import torch

from prior import SamplingRequest, generate, most_likely, order_by_likelihood


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
