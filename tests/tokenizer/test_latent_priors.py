"""The contract of every latent prior in the union, then what each promises beyond it."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from tests.tokenizer.members import examples
from tokenizer.latent_priors import LatentPriorConfig, build_latent_prior
from tokenizer.latent_priors.gaussian_mixture import GaussianMixture
from tokenizer.latent_priors.vamp import PosteriorMixture, VampConfig, VampPrior
from tokenizer.latents import LatentDistribution, LatentPrior
from tokenizer.posteriors import DiagonalGaussian

MEMBERS = examples(LatentPriorConfig)
SHAPE, IMAGE = (3, 2, 1), (1, 4, 4)
LABELS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))  # embedded, for priors that depend on them

every_member = pytest.mark.parametrize("name", MEMBERS)


class Encoder(nn.Module):
    """From images to the means and log-variances of a diagonal Gaussian."""

    def __init__(self):
        super().__init__()
        self.layer, self.images = nn.Linear(16, 12), 0
        nn.init.normal_(self.layer.weight)

    def forward(self, images: torch.Tensor) -> DiagonalGaussian:
        self.images += len(images)
        mean, log_variance = self.layer(images.flatten(1)).view(-1, 6, 2, 1).chunk(2, 1)
        return DiagonalGaussian(mean, log_variance)


def a_prior(name: str) -> tuple[Any, Encoder]:
    torch.manual_seed(0)
    return build_latent_prior(MEMBERS[name], SHAPE, IMAGE, LABELS.shape[1]), Encoder()


def given_one_label(name: str) -> Any:
    prior, encoder = a_prior(name)
    return prior.distribution(encoder, LABELS[:1])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_member
def test_configuration_survives_json(name):
    adapter = TypeAdapter(LatentPriorConfig)
    assert adapter.validate_json(adapter.dump_json(MEMBERS[name])) == MEMBERS[name]


@every_member
def test_every_member_keeps_the_protocol(name):
    prior, encoder = a_prior(name)
    distribution = prior.distribution(encoder, LABELS[:1])
    assert isinstance(prior, LatentPrior) and isinstance(distribution, LatentDistribution)
    z = torch.randn(4, 5, *SHAPE, requires_grad=True)
    log_prob = distribution.log_prob(z)
    assert log_prob.shape == (4, 5) and log_prob.dtype == torch.float32
    (gradient,) = torch.autograd.grad(log_prob.sum(), z)
    assert gradient.isfinite().all() and (gradient != 0).all()


@every_member
def test_draws_are_evaluated_one_by_one(name):
    distribution, z = given_one_label(name), torch.randn(4, 5, *SHAPE)
    alone = torch.stack([distribution.log_prob(z[:, i : i + 1])[:, 0] for i in range(5)], 1)
    torch.testing.assert_close(distribution.log_prob(z), alone)


@every_member
def test_a_seed_means_the_same_samples(name):
    distribution = given_one_label(name)
    one, same, other = (distribution.sample(6, seeded(seed)) for seed in (1, 1, 2))
    assert one.shape == (6, *SHAPE) and one.dtype == torch.float32
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert distribution.sample(2).shape == (2, *SHAPE)


@every_member
def test_samples_have_the_density_that_is_claimed(name):
    """∫ p(z) N(z; 0, 2²) / N(z; 0, 2²) over draws of each gives the same moments: E_p[f] = E_N[f p / N]."""
    distribution = given_one_label(name)
    with torch.no_grad():
        drawn = distribution.sample(20_000, seeded(1)).flatten(1)
        wide = Normal(drawn.mean(0), 1.5 * drawn.std(0))
        torch.manual_seed(1)
        z = wide.sample((100_000,))
        log_ratio = distribution.log_prob(z.view(-1, 1, *SHAPE))[:, 0] - wide.log_prob(z).sum(1)
        ratio = log_ratio.double().exp()
        error = 5 * ratio.std() / len(z) ** 0.5
        assert error < 0.2 and abs(ratio.mean() - 1) < error
        for function in (lambda v: v, torch.square, torch.cos):
            weighted = ratio[:, None] * function(z)
            error = 5 * (weighted.var(0) / len(z) + function(drawn).var(0) / len(drawn)).sqrt()
            assert ((weighted.mean(0) - function(drawn).mean(0)).abs() < error).all()


@every_member
def test_every_parameter_learns_and_so_does_the_encoder_where_it_takes_part(name):
    prior, encoder = a_prior(name)
    before = encoder.images
    prior.distribution(encoder, LABELS[:1]).log_prob(torch.randn(4, 5, *SHAPE, requires_grad=True)).sum().backward()
    assert all((p.grad != 0).any() and p.grad.isfinite().all() for p in prior.parameters())
    assert (encoder.layer.weight.grad is not None) == (encoder.images > before)


@every_member
def test_a_draw_depends_on_its_own_generator_alone(name):
    distribution = given_one_label(name)
    together = distribution.sample(3, [seeded(seed) for seed in range(3)])
    alone = torch.cat([distribution.sample(1, seeded(seed)) for seed in range(3)])
    torch.testing.assert_close(together, alone)
    with pytest.raises(ValueError, match="found 2 generators, expected one for each of 3"):
        distribution.sample(3, [seeded(0), seeded(1)])


@every_member
def test_a_low_temperature_draws_likelier_latents_and_one_changes_nothing(name):
    distribution = given_one_label(name)
    warm, cold = distribution.sample(500, seeded(0)), distribution.sample(500, seeded(0), 0.5)
    assert torch.equal(warm, distribution.sample(500, seeded(0), temperature=1.0))
    difference = (distribution.log_prob(cold[:, None]) - distribution.log_prob(warm[:, None])).detach()
    assert difference.mean() > 5 * difference.std() / len(difference) ** 0.5


@every_member
def test_each_row_has_the_prior_of_its_own_label(name):
    """So have its draws. The priors that do not depend on labels take no notice of them."""
    prior, encoder = a_prior(name)
    together, z = prior.distribution(encoder, LABELS), torch.randn(1, 5, *SHAPE).expand(3, -1, -1, -1, -1)
    alone = [prior.distribution(encoder, label[None]) for label in LABELS]
    densities = torch.cat([each.log_prob(z[:1]) for each in alone])
    torch.testing.assert_close(together.log_prob(z), densities)
    assert torch.allclose(densities[0], densities[1]) != MEMBERS[name].conditional
    generators = [seeded(0), seeded(1), seeded(2)]
    drawn = torch.cat([each.sample(1, seeded(seed)) for seed, each in enumerate(alone)])
    torch.testing.assert_close(together.sample(3, generators), drawn)


def test_a_conditional_prior_asks_for_a_condition():
    prior, encoder = a_prior("flow conditional=True")
    with pytest.raises(ValueError, match="condition: found none"):
        prior.distribution(encoder)


def a_mixture(m=5, scale=1.0) -> GaussianMixture:
    torch.manual_seed(0)
    mean, log_variance = scale * torch.randn(m, *SHAPE), torch.randn(m, *SHAPE)
    return GaussianMixture(torch.randn(m).log_softmax(0), mean, log_variance)


def reference(mixture: GaussianMixture) -> MixtureSameFamily:
    normal = Normal(mixture.mean.double(), (mixture.log_variance.double() / 2).exp())
    return MixtureSameFamily(Categorical(logits=mixture.log_weight.double()), Independent(normal, 3))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_mixture_is_torchs(scale):
    mixture = a_mixture(scale=scale)
    z = scale * torch.randn(4, 6, *SHAPE)
    expected = reference(mixture).log_prob(z.double())
    torch.testing.assert_close(mixture.log_prob(z).double(), expected, rtol=1e-6, atol=1e-4)


def test_narrow_components_far_from_zero_lose_no_precision():
    mixture = a_mixture()
    mixture.mean, mixture.log_variance = mixture.mean + 30, mixture.log_variance - 12
    z = mixture.sample(50, seeded(0))[:, None]
    torch.testing.assert_close(mixture.log_prob(z).double(), reference(mixture).log_prob(z.double()))


def test_components_are_drawn_by_their_weights():
    mixture = a_mixture(scale=1000.0)
    z = mixture.sample(20_000, seeded(0))
    nearest = (z[:, None] - mixture.mean).square().sum((2, 3, 4)).argmin(1)
    share = nearest.bincount(minlength=5) / len(z)
    torch.testing.assert_close(share, mixture.log_weight.exp(), rtol=0, atol=0.02)


def test_the_temperature_of_a_mixture_is_that_of_its_components_alone():
    mixture = a_mixture(scale=1000.0)
    warm, cold = mixture.sample(50, seeded(0)), mixture.sample(50, seeded(0), 0.25)
    nearest, same = ((z[:, None] - mixture.mean).square().sum((2, 3, 4)).argmin(1) for z in (warm, cold))
    assert torch.equal(nearest, same)
    mean = mixture.mean[nearest]
    torch.testing.assert_close(cold - mean, 0.25 * (warm - mean), rtol=1e-3, atol=1e-3)


def test_the_vamp_prior_is_the_mean_of_the_posteriors_of_its_pseudo_inputs():
    prior, encoder = a_prior("vamp")
    with torch.no_grad():
        prior.pseudo_inputs.normal_(0.5, 1)
    z = torch.randn(4, 3, *SHAPE)
    posterior = encoder(prior.pseudo_inputs.clamp(0, 1))
    normal = Normal(posterior.mean, (posterior.log_variance / 2).exp())
    mixture = MixtureSameFamily(Categorical(torch.ones(500)), Independent(normal, 3))
    torch.testing.assert_close(prior.distribution(encoder).log_prob(z), mixture.log_prob(z))


def test_the_vamp_prior_encodes_its_pseudo_inputs_once_for_all_draws():
    prior, encoder = a_prior("vamp pseudo_inputs=7")
    distribution = prior.distribution(encoder)
    for draws in (1, 4):
        distribution.log_prob(torch.randn(3, draws, *SHAPE))
    distribution.sample(5)
    assert encoder.images == 7


def test_pixels_of_new_pseudo_inputs_all_learn():
    for mean in (0.05, 0.5):
        pixels = VampPrior(VampConfig(init_mean=mean), (1, 28, 28)).pseudo_inputs
        assert pixels.min() > 0 and pixels.max() < 1 and abs(pixels.mean() - mean) < 1e-3
        assert len(pixels.detach().flatten(1).unique(dim=0)) == 500


def test_a_posterior_of_any_kind_makes_the_same_vamp_prior():
    """The mixture of diagonal Gaussians is a fast path of this one."""
    prior, encoder = a_prior("vamp pseudo_inputs=7")
    fast = prior.distribution(encoder)
    slow = PosteriorMixture(prior.pseudo_inputs.clamp(0, 1), encoder)
    z = torch.randn(4, 3, *SHAPE)
    torch.testing.assert_close(slow.log_prob(z), fast.log_prob(z))
    torch.testing.assert_close(slow.sample(9, seeded(0), 0.3), fast.sample(9, seeded(0), 0.3))
    drawn, expected = (each.sample(20_000, seeded(0)).detach() for each in (slow, fast))
    torch.testing.assert_close(drawn.mean(0), expected.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(drawn.std(0), expected.std(0), rtol=0.05, atol=0)
