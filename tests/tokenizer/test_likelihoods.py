"""What holds of every likelihood. Members are taken from the union; each kind's own facts are in the file beside it."""

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tokenizer.members import examples
from tokenizer.likelihoods import Likelihood, LikelihoodConfig, build_likelihood

MEMBERS = examples(LikelihoodConfig)
MASSES = {name: config for name, config in MEMBERS.items() if build_likelihood(config, 1).is_mass}
FEW_VALUES = {name: config for name, config in MASSES.items() if (build_likelihood(config, 1).bins or 0) <= 16}
DENSITIES = {name: config for name, config in MEMBERS.items() if name not in MASSES}
SUPPORTS = {"logit_laplace": (-1 / 8, 9 / 8)}  # of densities; the others are on the whole line

every_member = pytest.mark.parametrize("config", MEMBERS.values(), ids=MEMBERS)
every_mass = pytest.mark.parametrize("config", MASSES.values(), ids=MASSES)
every_mass_over_few_values = pytest.mark.parametrize("config", FEW_VALUES.values(), ids=FEW_VALUES)
every_density = pytest.mark.parametrize("config", DENSITIES.values(), ids=DENSITIES)
every_number_of_channels = pytest.mark.parametrize("channels", [1, 3])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def eight_bit(*shape: int) -> Tensor:
    return torch.randint(256, shape).float() / 255


def draw_maps(likelihood: Likelihood, *shape: int, spread: float = 1.0) -> Tensor:
    """Maps for images of `shape` = (*n, h, w)."""
    *batch, h, w = shape
    return spread * torch.randn(*batch, likelihood.out_channels, h, w)


def pixels(values: Any) -> Tensor:
    """Grey images of one pixel."""
    return torch.as_tensor(values).view(-1, 1, 1, 1)


def integral(config: Any, maps: Tensor, low: float = -15, high: float = 16) -> Tensor:
    """The probability that a grey pixel is between `low` and `high`, by quadrature of its density."""
    bottom, top = SUPPORTS.get(config.kind, (low, high))
    x = torch.linspace(max(low, bottom + 1e-9), min(high, top - 1e-9), 100_001, dtype=torch.float64)
    with torch.no_grad():
        density = torch.exp(-build_likelihood(config, 1).nll(maps.expand(len(x), -1, -1, -1), pixels(x)))
    return torch.trapezoid(density, x)


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """Pearson's statistic, in its standard deviations above its mean. Rare cells are merged."""
    rare = expected < 10
    counts, expected = (torch.cat([each[~rare], each[rare].sum()[None]]).double() for each in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = max(len(counts) - 1, 1)
    return (((counts - expected).square() / expected).sum().item() - degrees) / (2 * degrees) ** 0.5


@every_member
def test_members_keep_the_contract(config):
    likelihood = build_likelihood(config, 3)
    assert isinstance(likelihood, Likelihood)
    assert likelihood.is_mass == (likelihood.bins is not None)


@every_mass
def test_masses_sum_to_one_over_the_values_of_a_pixel(config):
    likelihood = build_likelihood(config, 1)
    assert likelihood.bins is not None
    for spread in (0.1, 1, 5):
        maps = draw_maps(likelihood, 1, 1, 1, spread=spread).expand(likelihood.bins, -1, -1, -1)
        masses = torch.exp(-likelihood.nll(maps, pixels(torch.arange(likelihood.bins) / (likelihood.bins - 1))))
        assert masses.double().sum().item() == pytest.approx(1, abs=1e-4)


@every_mass_over_few_values
def test_masses_sum_to_one_over_the_colours_of_a_pixel(config):
    likelihood: Any = build_likelihood(config, 3)
    colours = torch.tensor(list(product(range(likelihood.bins), repeat=3))) / (likelihood.bins - 1)
    maps = draw_maps(likelihood, 1, 1, 1).expand(len(colours), -1, -1, -1)
    masses = torch.exp(-likelihood.nll(maps, colours.view(-1, 3, 1, 1)))
    assert masses.double().sum().item() == pytest.approx(1, abs=1e-4)


@every_density
def test_densities_integrate_to_one_over_their_support(config):
    likelihood = build_likelihood(config, 1)
    for _ in range(3):
        maps = draw_maps(likelihood, 1, 1, 1, spread=0.5)
        maps[:, 1:] -= 0.5  # no singularity at the end of a support, which the grid would miss
        assert integral(config, maps).item() == pytest.approx(1, abs=1e-4)


@every_density
def test_channels_of_a_density_are_independent(config):
    one, three = build_likelihood(config, 1), build_likelihood(config, 3)
    maps, x = draw_maps(three, 2, 4, 4), eight_bit(2, 3, 4, 4)
    by_channel = maps.unflatten(1, (-1, 3))
    parts = [one.nll(by_channel[:, :, channel], x[:, [channel]]) for channel in range(3)]
    torch.testing.assert_close(three.nll(maps, x), torch.stack(parts).sum(0))


@every_mass
def test_samples_of_a_mass_have_its_frequencies(config):
    likelihood, n = build_likelihood(config, 1), 20_000
    assert likelihood.bins is not None
    maps = draw_maps(likelihood, 1, 1, 1)
    values = likelihood.sample(maps.expand(n, -1, -1, -1)).flatten() * (likelihood.bins - 1)
    assert (values - values.round()).abs().max() < 1e-4
    counts = torch.bincount(values.round().long(), minlength=likelihood.bins)
    every_value = pixels(torch.arange(likelihood.bins) / (likelihood.bins - 1))
    expected = n * torch.exp(-likelihood.nll(maps.expand(likelihood.bins, -1, -1, -1), every_value))
    assert abs(chi_square(counts, expected)) < 5


@every_mass
def test_colours_are_sampled_from_the_joint_mass(config):
    """E[q(x) / p(x)] = 1 for samples x of p, whatever the mass q; the likelihood of other maps is such a q."""
    likelihood, n = build_likelihood(config, 3), 5000
    maps = draw_maps(likelihood, 1, 1, 1)
    x = likelihood.sample(maps.expand(n, -1, -1, -1))
    for _ in range(10):
        other = maps + draw_maps(likelihood, 1, 1, 1, spread=0.1)
        nll, other_nll = (likelihood.nll(each.expand(n, -1, -1, -1), x) for each in (maps, other))
        ratio = torch.exp(nll - other_nll)
        assert abs(ratio.mean().item() - 1) < 5 * ratio.std().item() / n**0.5


@every_density
def test_samples_of_a_density_have_its_frequencies(config):
    likelihood, n = build_likelihood(config, 1), 20_000
    maps = draw_maps(likelihood, 1, 1, 1, spread=0.5)
    edges = [-15, *torch.linspace(0, 1, 11).tolist(), 16]
    integrals = [integral(config, maps, low, high) for low, high in pairwise(edges)]
    samples = likelihood.sample(maps.expand(n, -1, -1, -1)).flatten()
    assert samples.min() >= 0 and samples.max() <= 1
    # Samples below 0 and above 1 are clipped: they fill the first and the last cell, of one point each.
    inner = torch.histc(samples[(samples > 0) & (samples < 1)], 10, 0, 1)
    counts = torch.cat([(samples == 0).sum()[None], inner, (samples == 1).sum()[None]])
    assert abs(chi_square(counts, n * torch.stack(integrals))) < 5


@every_member
@every_number_of_channels
def test_the_mean_is_the_mean_of_samples(config, channels):
    if getattr(config, "shown", "mean") != "mean":
        return  # by request another figure of the same distribution
    likelihood, n = build_likelihood(config, channels), 2000
    maps = draw_maps(likelihood, 1, 3, 2, spread=0.1 if config.kind in ("normal", "laplace") else 1)
    mean, samples = likelihood.mean(maps), likelihood.sample(maps.expand(n, -1, -1, -1))
    assert mean.shape == (1, channels, 3, 2) and samples.shape == (n, channels, 3, 2)
    assert samples.min() >= 0 and samples.max() <= 1
    # Samples of a normal or Laplace pixel are clipped, its mean is that before clipping.
    slack = 0.03 if config.kind in ("normal", "laplace") else 0.005
    assert ((samples.mean(0) - mean[0]).abs() < slack + 5 * samples.std(0) / n**0.5).all()


@every_member
def test_nll_is_a_sum_per_image_so_tiles_add_up(config):
    likelihood = build_likelihood(config, 1)
    params, x = draw_maps(likelihood, 3, 4, 4), eight_bit(3, 1, 4, 4)
    once, twice = likelihood.nll(params, x), likelihood.nll(torch.cat([params] * 2, 3), torch.cat([x] * 2, 3))
    assert once.shape == (3,)
    torch.testing.assert_close(twice, 2 * once)


@every_member
@every_number_of_channels
def test_one_image_is_compared_with_many_draws(config, channels):
    likelihood = build_likelihood(config, channels)
    params, x = draw_maps(likelihood, 2, 5, 4, 3), eight_bit(2, channels, 4, 3)
    found = likelihood.nll(params, x[:, None])
    expected = likelihood.nll(params.flatten(0, 1), x.repeat_interleave(5, 0)).view(2, 5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(likelihood.mean(params)[:, 3], likelihood.mean(params[:, 3]))
    assert likelihood.sample(params).shape == (2, 5, channels, 4, 3)


@every_member
def test_the_memory_layout_of_maps_changes_nothing(config):
    likelihood = build_likelihood(config, 3)
    params, x = draw_maps(likelihood, 2, 4, 5), eight_bit(2, 3, 4, 5)
    other = params.to(memory_format=torch.channels_last)
    torch.testing.assert_close(likelihood.nll(other, x), likelihood.nll(params, x))
    seeded = [likelihood.sample(each, torch.Generator().manual_seed(0)) for each in (params, other)]
    torch.testing.assert_close(*seeded)


@every_member
def test_results_are_on_the_device_of_the_maps(config):
    """Shown on the device without data, which takes no tensor from another one."""
    likelihood: Any = build_likelihood(config, 3)
    likelihood.to("meta")
    params, x = draw_maps(likelihood, 2, 4, 5).to("meta"), eight_bit(2, 3, 4, 5).to("meta")
    found = likelihood.nll(params, x), likelihood.mean(params), likelihood.sample(params)
    assert {each.device.type for each in found} == {"meta"}


@every_member
def test_a_seed_fixes_a_sample(config):
    likelihood = build_likelihood(config, 1)
    params = draw_maps(likelihood, 2, 4, 4)
    one, same, other = (likelihood.sample(params, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@every_member
def test_each_image_may_have_a_seed_of_its_own(config):
    likelihood = build_likelihood(config, 1)
    params = draw_maps(likelihood, 3, 8, 8)
    together = likelihood.sample(params, [torch.Generator().manual_seed(seed) for seed in range(3)])
    alone = likelihood.sample(params[1:2], [torch.Generator().manual_seed(1)])
    torch.testing.assert_close(alone, together[1:2])


@every_member
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_maps_give_full_precision_nats(config, dtype, autocast):
    likelihood = build_likelihood(config, 1)
    params, x = draw_maps(likelihood, 2, 28, 28).to(dtype), eight_bit(2, 1, 28, 28)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = likelihood.nll(params, x), likelihood.mean(params), likelihood.sample(params)
    assert {each.dtype for each in found} == {torch.float32}
    torch.testing.assert_close(found[0], likelihood.nll(params.float(), x))
    torch.testing.assert_close(found[1], likelihood.mean(params.float()))


@every_member
def test_parameters_in_half_precision_are_those_in_full_precision_once_rounded(config):
    """A learned scale counts in every pixel: it is computed in float32."""
    half: Any = build_likelihood(config, 1)
    full: Any = build_likelihood(config, 1)
    half.to(torch.bfloat16)
    full.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    params, x = draw_maps(full, 2, 28, 28), eight_bit(2, 1, 28, 28)
    torch.testing.assert_close(half.nll(params, x), full.nll(params, x))


@every_member
@every_number_of_channels
@pytest.mark.parametrize("size", [0.0, 30.0, 65504.0])  # the largest number of float16
def test_extreme_maps_and_pixels_give_finite_figures_and_gradients(config, channels, size):
    likelihood = build_likelihood(config, channels)
    params = (size * torch.randn(6, likelihood.out_channels, 8, 8).sign()).requires_grad_()
    x = torch.tensor([0, 1, 128 / 255]).repeat(2).view(6, 1, 1, 1).expand(6, channels, 8, 8)
    nll, mean = likelihood.nll(params, x), likelihood.mean(params)
    assert nll.isfinite().all() and mean.isfinite().all()
    for figure in (nll, mean):
        (gradient,) = torch.autograd.grad(figure.sum(), params)
        assert gradient.isfinite().all()
    sample = likelihood.sample(params)
    assert sample.min() >= 0 and sample.max() <= 1 and mean.min() >= 0 and mean.max() <= 1


@every_member
@every_number_of_channels
def test_every_map_and_every_parameter_learns(config, channels):
    likelihood = build_likelihood(config, channels)
    params = draw_maps(likelihood, 8, 16, 16).requires_grad_()
    likelihood.nll(params, eight_bit(8, channels, 16, 16)).sum().backward()
    assert params.grad is not None and (params.grad.abs().sum((0, 2, 3)) > 0).all()
    assert all(parameter.grad is not None and parameter.grad.abs() > 0 for parameter in likelihood.parameters())


@every_member
def test_the_mean_has_a_gradient(config):
    likelihood = build_likelihood(config, 3)
    params = draw_maps(likelihood, 2, 4, 4, spread=0.1).requires_grad_()
    likelihood.mean(params).square().sum().backward()
    assert params.grad is not None and params.grad.isfinite().all() and params.grad.abs().sum() > 0


@every_member
def test_better_maps_have_fewer_nats(config):
    """Gradient descent on maps of its own brings every likelihood to the image."""
    likelihood, x = build_likelihood(config, 3), torch.randint(2, (1, 3, 4, 4)).float()
    params = draw_maps(likelihood, 1, 4, 4, spread=0.1).requires_grad_()
    optimizer, before = torch.optim.Adam([params], lr=0.1), likelihood.nll(params, x).item()
    for _ in range(150):
        optimizer.zero_grad()
        likelihood.nll(params, x).sum().backward()
        optimizer.step()
    assert likelihood.nll(params, x).item() < before
    assert (likelihood.mean(params) - x).abs().max() < 0.1


@every_member
def test_the_encoder_sees_numbers_about_zero_to_one(config):
    """The name of this range is in the fingerprint of tokenizers: it must never change."""
    likelihood: Any = build_likelihood(config, 1)
    low, high, name = {"logit_laplace": (0.1, 0.9, "map_pixels")}.get(config.kind, (-1, 1, "signed"))
    torch.testing.assert_close(likelihood.inmap(pixels([0.0, 1.0])), pixels([low, high]).float())
    assert likelihood.inmap.__name__ == name
