"""Each likelihood against torch.distributions or a formula written down a second time."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, distributions

from tokenizer.likelihoods import build_likelihood
from tokenizer.likelihoods.bernoulli import BernoulliConfig
from tokenizer.likelihoods.categorical import CategoricalConfig
from tokenizer.likelihoods.discretized_logistic import DiscretizedLogisticConfig
from tokenizer.likelihoods.laplace import LaplaceConfig
from tokenizer.likelihoods.logit_laplace import LogitLaplaceConfig
from tokenizer.likelihoods.normal import NormalConfig

LOCATION_SCALE = [(NormalConfig, distributions.Normal), (LaplaceConfig, distributions.Laplace)]
every_location_scale = pytest.mark.parametrize(("config", "oracle"), LOCATION_SCALE)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def eight_bit(*shape: int) -> Tensor:
    return torch.randint(256, shape).float() / 255


def test_options_of_released_kinds_keep_their_defaults():
    """A recipe and a fingerprint leave defaults out, so these may never change."""
    assert NormalConfig().model_dump() == {"kind": "normal", "scale": 0.1}
    assert CategoricalConfig().model_dump() == {"kind": "categorical", "bins": 256}
    learned: Any = build_likelihood(NormalConfig(scale="learned"), 1)
    assert list(learned.state_dict()) == ["free_log_scale"]


@every_location_scale
def test_a_fixed_scale_is_in_units_of_the_unit_range(config, oracle):
    likelihood = build_likelihood(config(scale=0.2), 3)
    params, x = torch.randn(4, 3, 5, 6), eight_bit(4, 3, 5, 6)
    expected = oracle((params + 1) / 2, 0.2).log_prob(x)
    torch.testing.assert_close(likelihood.nll(params, x), -expected.sum((1, 2, 3)))


@every_location_scale
def test_a_predicted_scale_is_one_for_each_pixel(config, oracle):
    likelihood: Any = build_likelihood(config(scale="predicted"), 3)
    params, x = torch.randn(4, 6, 5, 6), eight_bit(4, 3, 5, 6)
    scale = 0.25 * params[:, 3:].exp() + 1 / 255
    expected = oracle((params[:, :3] + 1) / 2, scale).log_prob(x)
    torch.testing.assert_close(likelihood.nll(params, x), -expected.sum((1, 2, 3)))


@every_location_scale
def test_a_scale_is_never_finer_than_one_grey_level(config, oracle):
    del oracle
    learned: Any = build_likelihood(config(scale="learned"), 1)
    learned.free_log_scale.data.fill_(-1e4)
    assert learned.log_scale(torch.zeros(1, 1, 1, 1)).exp().item() == pytest.approx(1 / 255)
    predicted: Any = build_likelihood(config(scale="predicted"), 1)
    assert predicted.log_scale(torch.full((1, 2, 1, 1), -1e4)).exp().item() == pytest.approx(1 / 255)


@pytest.mark.parametrize(
    ("config", "fit"),
    [(NormalConfig, lambda error: error.square().mean().sqrt()), (LaplaceConfig, lambda error: error.abs().mean())],
)
def test_a_learned_scale_finds_the_reconstruction_error(config, fit):
    likelihood: Any = build_likelihood(config(scale="learned"), 1)
    assert likelihood.log_scale(torch.zeros(1, 1, 1, 1)).exp().item() == pytest.approx(0.25)
    params, error = torch.zeros(64, 1, 8, 8), 0.07 * torch.randn(64, 1, 8, 8)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        likelihood.nll(params, 0.5 + error).mean().backward()
        optimizer.step()
    assert likelihood.log_scale(params).exp().item() == pytest.approx(fit(error).item(), rel=0.01)


def test_the_decoder_of_a_normal_answers_in_the_range_of_the_encoder():
    likelihood, x = build_likelihood(NormalConfig(), 1), eight_bit(1, 1, 4, 4)
    torch.testing.assert_close(likelihood.mean(likelihood.inmap(x)), x)


def test_bernoulli_nll_is_exact_on_black_and_white():
    likelihood = build_likelihood(BernoulliConfig(), 1)
    params, x = 3 * torch.randn(4, 1, 5, 6), torch.randint(2, (4, 1, 5, 6)).float()
    expected = distributions.Bernoulli(logits=params).log_prob(x)
    torch.testing.assert_close(likelihood.nll(params, x), -expected.sum((1, 2, 3)))


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
    expected = distributions.Categorical(logits=logits).log_prob(value)
    torch.testing.assert_close(likelihood.nll(params, value / (bins - 1)), -expected.sum((1, 2, 3)))


def test_logit_laplace_is_a_transformed_laplace():
    likelihood = build_likelihood(LogitLaplaceConfig(), 3)
    params, x = torch.randn(4, 6, 5, 6), eight_bit(4, 3, 5, 6)
    mu, scale = params[:, :3], params[:, 3:].exp() + 4 * 0.8 / 255
    to_pixels = distributions.AffineTransform(-0.1 / 0.8, 1 / 0.8)
    oracle = distributions.TransformedDistribution(
        distributions.Laplace(mu, scale), [distributions.SigmoidTransform(), to_pixels]
    )
    torch.testing.assert_close(likelihood.nll(params, x), -oracle.log_prob(x).sum((1, 2, 3)))


def test_without_a_floor_the_maps_of_logit_laplace_are_mu_and_ln_b_as_in_the_paper():
    """f(y | mu, b) = exp(-|logit y - mu| / b) / (2 b y (1 - y)), and the density of x = (y - 0.1) / 0.8 is 0.8 f."""
    likelihood = build_likelihood(LogitLaplaceConfig(scale_floor="none"), 3)
    params, x = 2 * torch.randn(4, 6, 5, 6, dtype=torch.double), eight_bit(4, 3, 5, 6).double()
    mu, b, y = params[:, :3], params[:, 3:].exp(), 0.8 * x + 0.1
    exponent = -((y / (1 - y)).log() - mu).abs() / b  # whose exp may be 0 in double precision too
    expected = -(exponent - (2 * b * y * (1 - y)).log() + math.log(0.8)).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.nll(params, x), expected, check_dtype=False, rtol=1e-5, atol=1e-3)


def test_the_median_of_logit_laplace_noise_is_the_image_that_the_paper_shows():
    likelihood = build_likelihood(LogitLaplaceConfig(shown="median"), 1)
    mu = torch.linspace(-4, 4, 9).view(-1, 1, 1, 1)
    wide = torch.cat([mu, torch.ones_like(mu)], 1)
    median = likelihood.mean(wide)
    torch.testing.assert_close(median, ((mu.sigmoid() - 0.1) / 0.8).clamp(0, 1))
    samples = likelihood.sample(wide.expand(9, 2, 100, 100), torch.Generator().manual_seed(0))
    assert ((samples < median).float().mean((1, 2, 3)) <= 0.52).all()
    assert ((samples > median).float().mean((1, 2, 3)) <= 0.52).all()


def test_the_mean_of_narrow_logit_laplace_noise_is_the_image_that_the_paper_shows():
    likelihood = build_likelihood(LogitLaplaceConfig(), 1)
    mu = torch.linspace(-2, 2, 5).view(-1, 1, 1, 1)
    narrow = likelihood.mean(torch.cat([mu, torch.full_like(mu, -20)], 1))
    torch.testing.assert_close(narrow, (mu.sigmoid() - 0.1) / 0.8, atol=1e-3, rtol=0)


def logistic_masses(mean: float, log_scale: float) -> Tensor:
    """The mass of each of 256 values, by differences of the distribution function in double precision."""
    edges = (2 * torch.arange(255, dtype=torch.float64) + 1) / 255 - 1
    below = torch.sigmoid((edges - mean) / math.exp(log_scale))
    return torch.diff(below, prepend=torch.zeros(1), append=torch.ones(1))


def mixture_nll(maps: list[float], colour: list[int], components: int) -> float:
    """PixelCNN++, equations 2 and 3, for one pixel."""
    k, c = components, len(colour)
    table = torch.tensor(maps, dtype=torch.float64).view(-1, k)
    if k == 1:
        table = torch.cat([torch.zeros(1, 1), table])
    weights = table[0].softmax(0)
    values = [2 * level / 255 - 1 for level in colour]
    total = 0.0
    for component in range(k):
        means, log_scales = table[1 : 1 + c, component].tolist(), table[1 + c : 1 + 2 * c, component]
        log_scales = torch.log(log_scales.exp() + math.exp(-7)).tolist()  # the paper: max(log_scale, -7)
        if c == 3:
            alpha, beta, gamma = table[7:, component].tanh().tolist()
            means[1] += alpha * values[0]
            means[2] += beta * values[0] + gamma * values[1]
        mass = weights[component].item()
        for mean, log_scale, level in zip(means, log_scales, colour, strict=True):
            mass *= logistic_masses(mean, log_scale)[level].item()
        total += mass
    return -math.log(total)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("components", [1, 4])
def test_discretized_logistic_nll_is_the_paper_s(channels, components):
    likelihood = build_likelihood(DiscretizedLogisticConfig(components=components), channels)
    assert likelihood.out_channels == {(1, 1): 2, (1, 3): 9, (4, 1): 12, (4, 3): 40}[components, channels]
    for level in (0, 1, 100, 254, 255):
        maps = torch.randn(likelihood.out_channels)
        colour = [level, *torch.randint(256, (channels - 1,)).tolist()]
        found = likelihood.nll(maps.view(1, -1, 1, 1), torch.tensor(colour).view(1, -1, 1, 1) / 255)
        assert found.item() == pytest.approx(mixture_nll(maps.tolist(), colour, components), rel=1e-4)


def test_discretized_logistic_keeps_masses_too_small_for_a_difference():
    likelihood = build_likelihood(DiscretizedLogisticConfig(components=1), 1)
    maps = torch.tensor([0.9, -5.0]).view(1, 2, 1, 1)
    nll = likelihood.nll(maps, torch.full((1, 1, 1, 1), 20 / 255)).item()
    scale = math.exp(-5) + math.exp(-7)
    upper, width = (2 * 20 / 255 - 1 + 1 / 255 - 0.9) / scale, 2 / 255 / scale
    assert nll == pytest.approx(-(upper + math.log1p(-math.exp(-width))), rel=1e-4)  # sigmoid is exp so far below
    assert nll > 200


def test_masses_of_a_discretized_logistic_sum_to_one_over_the_likely_colours():
    likelihood = build_likelihood(DiscretizedLogisticConfig(components=2), 3)
    logits, means = [0.3, -0.2], [-1.0, -0.98, 0.5, 0.47, 0.0, 0.02]  # red lies at the edge of black
    coefficients = [0.5, -0.4, 0.2, 0.1, -0.3, 0.4]
    maps = torch.tensor([*logits, *means, *[-6.0] * 6, *coefficients]).view(1, 20, 1, 1)
    samples = (255 * likelihood.sample(maps.expand(500, -1, -1, -1))).round().int()
    low, high = (samples.amin(0).flatten() - 8).clamp(min=0), (samples.amax(0).flatten() + 8).clamp(max=255)
    ranges = [range(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)]
    colours = torch.tensor(list(product(*ranges))).view(-1, 3, 1, 1) / 255
    masses = torch.exp(-likelihood.nll(maps.expand(len(colours), -1, -1, -1), colours))
    assert len(colours) < 200_000
    assert masses.double().sum().item() == pytest.approx(1, abs=1e-3)


def test_the_channels_of_a_discretized_logistic_depend_on_each_other():
    likelihood = build_likelihood(DiscretizedLogisticConfig(components=1), 3)
    maps = torch.tensor([0.0, 0, 0, -2, -2, -2, 1, 0, 0]).view(1, 9, 1, 1)  # green follows red
    red, green, blue = likelihood.sample(maps.expand(5000, -1, -1, -1)).flatten(1).T
    assert torch.corrcoef(torch.stack([red, green, blue]))[0].tolist() == pytest.approx([1, 0.606, 0], abs=0.06)


def test_the_mean_of_dependent_channels_knows_that_values_are_clipped():
    """Red is wide and often black or white, and moves green: green at the mean of red is not the mean of green."""
    likelihood = build_likelihood(DiscretizedLogisticConfig(components=1), 3)
    maps = torch.tensor([0.6, 0.4, -0.5, 0, -3, -3, 2.0, 1.5, 1.0]).view(1, 9, 1, 1)
    samples = likelihood.sample(maps.expand(40_000, -1, -1, -1))
    torch.testing.assert_close(likelihood.mean(maps)[0], samples.mean(0), atol=0.01, rtol=0)
