import math
from typing import Any

import pytest
import torch
from torch import distributions

from tests.tokenizer.members import examples
from tokenizer.likelihoods import (
    BernoulliConfig,
    CategoricalConfig,
    LikelihoodConfig,
    NormalConfig,
    build_likelihood,
)

MEMBERS = examples(LikelihoodConfig)
every_member = pytest.mark.parametrize("config", MEMBERS.values(), ids=MEMBERS)


def eight_bit(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape).float() / 255


def test_normal_nll_is_the_density_of_pixels_in_the_unit_range():
    likelihood = build_likelihood(NormalConfig(scale=0.2), 3)
    params, x = torch.randn(4, 3, 5, 6), eight_bit(4, 3, 5, 6)
    oracle = distributions.Normal((params + 1) / 2, 0.2).log_prob(x)
    torch.testing.assert_close(likelihood.nll(params, x), -oracle.sum((1, 2, 3)))


def test_learned_scale_finds_the_reconstruction_error():
    likelihood: Any = build_likelihood(NormalConfig(scale="learned"), 1)
    assert likelihood.log_scale().exp().item() == pytest.approx(0.25)
    error = 0.07 * torch.randn(64, 1, 8, 8)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        likelihood.nll(torch.zeros(64, 1, 8, 8), 0.5 + error).mean().backward()
        optimizer.step()
    assert likelihood.log_scale().exp().item() == pytest.approx(error.square().mean().sqrt().item(), rel=0.01)


def test_learned_scale_never_falls_below_one_grey_level():
    likelihood: Any = build_likelihood(NormalConfig(scale="learned"), 1)
    assert likelihood.free_log_scale is not None
    likelihood.free_log_scale.data.fill_(-1e4)
    assert likelihood.log_scale().exp().item() == pytest.approx(1 / 255)


def test_bernoulli_nll_is_exact_on_black_and_white():
    likelihood = build_likelihood(BernoulliConfig(), 1)
    params, x = 3 * torch.randn(4, 1, 5, 6), torch.randint(2, (4, 1, 5, 6)).float()
    oracle = distributions.Bernoulli(logits=params).log_prob(x)
    torch.testing.assert_close(likelihood.nll(params, x), -oracle.sum((1, 2, 3)))


def test_bernoulli_nll_of_grey_is_the_mean_over_its_binarisations():
    likelihood = build_likelihood(BernoulliConfig(), 1)
    logit, grey = torch.full((1, 1, 1, 1), 0.7), torch.full((1, 1, 1, 1), 0.3)
    white, black = likelihood.nll(logit, torch.ones(1, 1, 1, 1)), likelihood.nll(logit, torch.zeros(1, 1, 1, 1))
    torch.testing.assert_close(likelihood.nll(logit, grey), 0.3 * white + 0.7 * black)


@pytest.mark.parametrize("bins", [2, 256])
def test_categorical_nll_is_the_mass_of_the_pixel_values(bins):
    likelihood = build_likelihood(CategoricalConfig(bins=bins), 3)
    params, value = torch.randn(2, 3 * bins, 4, 5), torch.randint(bins, (2, 3, 4, 5))
    logits = params.view(2, 3, bins, 4, 5).movedim(2, -1)
    oracle = distributions.Categorical(logits=logits).log_prob(value)
    torch.testing.assert_close(likelihood.nll(params, value / (bins - 1)), -oracle.sum((1, 2, 3)))


def test_categorical_masses_sum_to_one_over_8_bit_values():
    likelihood = build_likelihood(CategoricalConfig(), 1)
    params = torch.randn(1, 256, 1, 1).expand(256, -1, -1, -1)
    every_value = (torch.arange(256, dtype=torch.uint8).float() / 255).view(256, 1, 1, 1)
    assert torch.exp(-likelihood.nll(params, every_value)).sum().item() == pytest.approx(1, abs=1e-5)


def test_normal_density_integrates_to_one():
    likelihood = build_likelihood(NormalConfig(scale=0.05), 1)
    x = torch.linspace(-1, 2, 3001)
    density = torch.exp(-likelihood.nll(torch.full((3001, 1, 1, 1), 0.1), x.view(-1, 1, 1, 1)))
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-4)


@every_member
def test_nll_is_a_sum_per_image_so_tiles_add_up(config):
    likelihood = build_likelihood(config, 1)
    params, x = torch.randn(3, likelihood.out_channels, 4, 4), eight_bit(3, 1, 4, 4)
    once, twice = likelihood.nll(params, x), likelihood.nll(torch.cat([params] * 2, 3), torch.cat([x] * 2, 3))
    assert once.shape == (3,)
    torch.testing.assert_close(twice, 2 * once)


@every_member
def test_mean_is_an_image_and_so_is_a_sample_of_that_mean(config):
    torch.manual_seed(0)
    likelihood = build_likelihood(config, 3)
    params = 0.1 * torch.randn(1, likelihood.out_channels, 4, 4)
    mean = likelihood.mean(params)
    samples = likelihood.sample(params.expand(4000, -1, -1, -1), torch.Generator().manual_seed(0))
    assert mean.shape == (1, 3, 4, 4) and samples.shape == (4000, 3, 4, 4)
    assert samples.min() >= 0 and samples.max() <= 1
    slack = 0.03 if isinstance(config, NormalConfig) else 0  # clipping at black and white moves the mean a little
    assert (samples.mean(0) - mean[0]).abs().max() < slack + 5 * 0.5 / math.sqrt(4000)


@every_member
def test_a_seed_fixes_a_sample(config):
    likelihood = build_likelihood(config, 1)
    params = torch.randn(2, likelihood.out_channels, 4, 4)
    one, same, other = (likelihood.sample(params, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@every_member
def test_half_precision_maps_give_full_precision_nats(config):
    likelihood = build_likelihood(config, 1)
    params, x = torch.randn(2, likelihood.out_channels, 28, 28).bfloat16(), eight_bit(2, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        nll, mean = likelihood.nll(params, x), likelihood.mean(params)
    assert nll.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(nll, likelihood.nll(params.float(), x))
    torch.testing.assert_close(mean, likelihood.mean(params.float()))


def test_the_encoder_sees_minus_one_to_one_and_the_decoder_answers_in_it():
    likelihood = build_likelihood(NormalConfig(), 1)
    x = eight_bit(1, 1, 4, 4)
    assert likelihood.inmap(torch.tensor([0, 0.5, 1]).view(1, 1, 1, 3)).flatten().tolist() == [-1, 0, 1]
    torch.testing.assert_close(likelihood.mean(likelihood.inmap(x)), x)
