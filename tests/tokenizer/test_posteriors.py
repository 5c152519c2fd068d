from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tokenizer.latents import LatentDistribution, LatentPrior, Posterior
from tokenizer.posteriors import DiagonalGaussian
from tokenizer.standard_normal import StandardNormal


def a_posterior(b=3) -> Any:
    return DiagonalGaussian(torch.randn(b, 4, 2, 5), torch.randn(b, 4, 2, 5))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_gaussian_is_a_posterior():
    assert isinstance(a_posterior(), Posterior)


def test_log_prob_is_torchs():
    posterior, z = a_posterior(), torch.randn(3, 6, 4, 2, 5)
    reference = Normal(posterior.mean[:, None], (posterior.log_variance / 2).exp()[:, None])
    torch.testing.assert_close(posterior.log_prob(z), reference.log_prob(z).sum((2, 3, 4)))


def test_kl_to_the_standard_normal_is_torchs():
    posterior, prior = a_posterior(), StandardNormal((4, 2, 5))
    expected = kl_divergence(Normal(posterior.mean, (posterior.log_variance / 2).exp()), Normal(0.0, 1.0))
    (level,) = posterior.kl(prior)
    torch.testing.assert_close(level, expected)


def test_kl_is_the_mean_of_the_log_ratio_over_draws():
    torch.manual_seed(0)
    posterior, prior = a_posterior(), StandardNormal((4, 2, 5))
    z = posterior.sample(20_000)
    ratio = posterior.log_prob(z) - prior.log_prob(z)
    error = 5 * ratio.std(1) / ratio.shape[1] ** 0.5
    assert ((ratio.mean(1) - posterior.kl(prior)[0].sum((1, 2, 3))).abs() < error).all()


def test_a_detached_posterior_passes_its_gradient_through_the_draw_alone():
    posterior = a_posterior()
    posterior.mean.requires_grad_()
    z = posterior.sample(2)
    posterior.detach().log_prob(z).sum().backward()
    expected = -(z - posterior.mean[:, None]) * (-posterior.log_variance[:, None]).exp()
    torch.testing.assert_close(posterior.mean.grad, expected.sum(1).detach())


def test_a_prior_without_a_closed_form_gives_none():
    assert a_posterior().kl(torch.nn.Identity()) is None


def test_draws_have_the_posteriors_moments():
    torch.manual_seed(0)
    posterior = a_posterior(1)
    z = posterior.sample(50_000)
    assert (z.mean(1) - posterior.mean).abs().max() < 0.05
    torch.testing.assert_close(z.std(1), (posterior.log_variance / 2).exp(), rtol=0.03, atol=0)


def test_draws_carry_the_gradient_to_mean_and_variance():
    posterior = a_posterior()
    posterior.mean.requires_grad_()
    posterior.log_variance.requires_grad_()
    z = posterior.sample(2)
    z.sum().backward()
    assert torch.equal(posterior.mean.grad, torch.full_like(posterior.mean, 2))
    torch.testing.assert_close(posterior.log_variance.grad, ((z - posterior.mean[:, None]) / 2).sum(1).detach())


def test_a_seed_means_the_same_draw_in_every_memory_layout():
    posterior = a_posterior()
    last = DiagonalGaussian(*(t.contiguous(memory_format=torch.channels_last) for t in vars(posterior).values()))
    one, other = (each.sample(2, torch.Generator().manual_seed(3)) for each in (posterior, last))
    assert torch.equal(one, other)


def test_a_cpu_generator_works_for_a_posterior_on_another_device():
    meta = DiagonalGaussian(*(t.to("meta") for t in vars(a_posterior()).values()))
    assert meta.sample(2, torch.Generator()).device.type == "meta"
    assert meta.sample(2, generators(1, 2, 3)).device.type == "meta"


def test_an_image_with_its_own_generator_does_not_see_the_batch():
    posterior = a_posterior()
    together = posterior.sample(2, generators(5, 6, 7))
    for i, seed in enumerate((5, 6, 7)):
        alone = DiagonalGaussian(posterior.mean[i : i + 1], posterior.log_variance[i : i + 1])
        assert torch.equal(alone.sample(2, generators(seed))[0], together[i])


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="found 2 generators, expected one for each of 3 rows"):
        a_posterior().sample(1, generators(1, 2))


def test_the_standard_normal_is_a_prior_and_its_own_distribution():
    prior = StandardNormal((4, 2, 5))
    assert isinstance(prior, LatentPrior) and isinstance(prior, LatentDistribution)
    assert prior.distribution(lambda x: a_posterior()) is prior


def test_the_prior_is_torchs_standard_normal():
    prior, z = StandardNormal((4, 2, 5)), torch.randn(3, 6, 4, 2, 5)
    torch.testing.assert_close(prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum((2, 3, 4)))
    one, same, other = (prior.sample(2, generator) for generator in generators(7, 7, 8))
    assert one.shape == (2, 4, 2, 5) and torch.equal(one, same) and not torch.equal(one, other)
