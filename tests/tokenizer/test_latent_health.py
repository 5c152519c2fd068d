"""The health of a continuous latent: moments against torch, divergences against torch.distributions, verdicts."""

import json
import math
import socket

import pytest
import torch
from torch import distributed
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.multiprocessing.spawn import spawn

from tests.tokenizer.members import examples, of_latent_prior, small
from tokenizer import Autoencoder, AutoencoderConfig, latent_health
from tokenizer.divergences import gaussian_kl
from tokenizer.latent_health import LatentMoments, total_correlation
from tokenizer.latent_priors import LatentPriorConfig
from tokenizer.latent_priors.gaussian_mixture import GaussianMixture
from tokenizer.posteriors import DiagonalGaussian, FullGaussian
from tokenizer.standard_normal import StandardNormal

IMAGES, UNITS = 400, 20


def posteriors(active, images=IMAGES, units=UNITS):
    """Means that vary in the first `active` units, and variances so that the aggregate posterior is N(0, 1)."""
    torch.manual_seed(0)
    spread = torch.tensor([0.9 if unit < active else 0.0 for unit in range(units)])
    mean = torch.randn(images, units)
    mean = (mean - mean.mean(0)) / mean.std(0, correction=0) * spread
    return mean, (1 - spread.square()).expand(images, units)


def health_of(mean, variance, kl=True, **options):
    moments = LatentMoments(mean.shape[1])
    moments.update(mean, variance, gaussian_kl(mean, variance.log()) if kl else None)
    return moments.report(**options)


def test_posteriors_of_any_kind_are_observed_by_their_draws(uneven):
    mean, variance = (values.repeat(40, 1) for values in uneven)
    posterior = DiagonalGaussian(mean[..., None, None], variance.log()[..., None, None])
    moments = LatentMoments(4)
    streams = [torch.Generator().manual_seed(seed) for seed in range(len(mean))]
    moments.observe(posterior, StandardNormal((4, 1, 1)), streams)
    found, expected = moments.report(), health_of(mean, variance)
    assert torch.allclose(found.aggregate_mean, expected.aggregate_mean)
    assert torch.allclose(found.mean_variance, expected.mean_variance)
    assert found.kl is not None and torch.allclose(found.kl, expected.kl)
    within = (found.aggregate_variance - found.mean_variance, expected.aggregate_variance - expected.mean_variance)
    assert torch.allclose(*within, rtol=0.05)


@pytest.fixture
def uneven():
    """Correlated means far from zero, and variances of their own."""
    torch.manual_seed(1)
    return 50 + torch.randn(100, 4) @ torch.randn(4, 4), 0.1 + torch.rand(100, 4)


def test_kl_is_the_mean_over_images(uneven):
    mean, variance = uneven
    expected = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0)).mean(0)
    assert torch.allclose(health_of(mean, variance).kl.float(), expected)


def test_a_unit_is_active_if_its_mean_varies_by_more_than_a_hundredth():
    mean = torch.tensor([[-0.11, -0.09, 5.0], [0.11, 0.09, 5.0]])
    health = health_of(mean, torch.ones(2, 3))
    assert health.active.tolist() == [True, False, False] and health.active_units == 1
    assert health.mean_variance.tolist() == pytest.approx([0.0121, 0.0081, 0], abs=1e-8)


def test_the_aggregate_is_the_mixture_of_the_posteriors(uneven):
    mean, variance = (values.double() for values in uneven)
    health = health_of(*uneven)
    second = (mean.square() + variance).mean(0)  # E[z^2] = E[m^2 + v]
    assert torch.allclose(health.aggregate_mean, mean.mean(0))
    assert torch.allclose(health.aggregate_variance, second - mean.mean(0).square())


def test_divergences_of_the_aggregate_add_up_to_that_of_the_joint_normal(uneven):
    """KL(N(mu, C) || N(0, I)) = sum of the marginals' KL + total correlation."""
    mean, variance = (values.double() for values in uneven)
    covariance = torch.cov(mean.T, correction=0) + variance.mean(0).diag()
    joint = kl_divergence(
        MultivariateNormal(mean.mean(0), covariance), MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    )
    health = health_of(*uneven)
    assert health.total_correlation == pytest.approx(joint.item() - health.aggregate_kl.sum().item(), rel=1e-6)


def test_total_correlation_of_two_normals_is_known_from_their_correlation():
    assert total_correlation(torch.tensor([[4.0, 1.2], [1.2, 1.0]])) == pytest.approx(-0.5 * torch.tensor(0.64).log())
    assert total_correlation(torch.diag(torch.tensor([3.0, 0.1]))) == pytest.approx(0)
    assert total_correlation(torch.ones(2, 2)) is None


def test_blocks_make_one_window(uneven):
    mean, variance = uneven
    kl = gaussian_kl(mean, variance.log())
    moments = LatentMoments(4)
    for rows in torch.arange(100).split([1, 60, 0, 39]):
        moments.update(mean[rows], variance[rows], kl[rows])
    found, whole = moments.report(), health_of(mean, variance)
    assert found.images == 100
    for name in ("kl", "mean_variance", "aggregate_mean", "aggregate_variance", "aggregate_kl"):
        assert torch.allclose(getattr(found, name), getattr(whole, name), rtol=1e-9)
    assert found.total_correlation == pytest.approx(whole.total_correlation)


def test_of_many_units_no_covariance_is_kept(uneven, monkeypatch):
    whole = health_of(*uneven)
    monkeypatch.setattr(latent_health, "MAX_JOINT", 3)
    health = health_of(*uneven)
    assert health.total_correlation is None and torch.allclose(health.mean_variance, whole.mean_variance)
    assert torch.allclose(health.aggregate_variance, whole.aggregate_variance)


@pytest.mark.parametrize(
    ("active", "verdict", "figure"),
    [
        (0, "collapsed", "0 of 40 units active"),
        (1, "collapsed", "1 of 40 units active, under 5%"),
        (3, "weak", "3 of 40 units active, under 10%"),
        (8, "healthy", "8 of 40 units active, KL 6.6"),
    ],
)
def test_verdicts_name_their_figures(active, verdict, figure):
    health = health_of(*posteriors(active, units=40))
    assert health.verdict == verdict and figure in health.reason


def test_units_that_say_less_than_a_nat_are_collapsed():
    mean = 0.2 * posteriors(20)[0]
    health = health_of(mean, torch.ones_like(mean))
    assert health.active_units == 20
    assert health.verdict == "collapsed" and "KL 0.32 nats an image, under 1" in health.reason


def test_a_posterior_that_is_away_from_the_prior_but_the_same_for_every_image_is_collapsed():
    """What free bits alone could be satisfied with."""
    health = health_of(torch.full((50, 4), 3.0), torch.ones(50, 4))
    assert health.kl.sum() == pytest.approx(18) and health.verdict == "collapsed"
    assert health.reason.startswith("0 of 4 units active: its KL of 18.00 nats is of posteriors far from the prior")


def far_and_nearly_alike(told, images=500, units=10, **options):
    """Units that are all active. The prior of an image's latent is 4.5 nats a unit away, and it tells `told` nats."""
    torch.manual_seed(0)
    signal = torch.randn(images, units)
    signal = (signal - signal.mean(0)) / signal.std(0, correction=0) * math.expm1(2 * told / units) ** 0.5
    return health_of(3 + signal, torch.ones_like(signal), **options)


def test_active_units_that_say_the_same_of_every_image_are_collapsed():
    """Of 46 nats, 0.8 are mutual information: half of ln(1 + variance of the mean) for each unit."""
    health = far_and_nearly_alike(0.8)
    assert health.active_units == 10 and health.kl.sum() > 45 and health.verdict == "collapsed"
    assert "tells at most 0.89 nats about its image, under 1: its KL of 45.87 nats" in health.reason
    assert far_and_nearly_alike(1.1).verdict == "weak"
    assert far_and_nearly_alike(0.8, standard_normal_prior=False).verdict == "healthy"


def test_narrow_posteriors_that_are_alike_for_all_images_are_collapsed():
    """Their variance alone is away from the prior's."""
    torch.manual_seed(0)
    mean = 0.15 * torch.randn(500, 10)
    health = health_of(mean, torch.full_like(mean, 0.15))
    assert health.active_units == 10 and health.kl.sum() > 5
    assert health.verdict == "collapsed" and "tells at most" in health.reason


def test_a_posterior_as_wide_as_that_of_an_untrained_network_does_not_decide():
    """Of variances of millions the few draws tell too little to compare with a KL."""
    torch.manual_seed(0)
    log_variance = 12 + 4 * torch.randn(40, 10, 1, 1)
    moments = LatentMoments(10)
    moments.observe(DiagonalGaussian(10 * torch.randn(40, 10, 1, 1), log_variance), StandardNormal((10, 1, 1)))
    assert moments.report().verdict == "weak"


def test_few_images_do_not_make_a_latent_seem_collapsed():
    """The aggregate posterior of five images is 0.3 nats from the prior by chance, and the latent tells 1.2."""
    torch.manual_seed(0)
    mean = 0.065**0.5 * torch.randn(5, 40)
    assert health_of(mean, torch.ones_like(mean)).verdict == "healthy"


def test_an_aggregate_far_from_a_standard_normal_prior_is_weak():
    mean, variance = posteriors(20)
    health = health_of(3 * mean, variance)
    assert health.verdict == "weak" and "2.23 nats a unit from the prior" in health.reason  # variance 7.29 + 0.19
    assert health_of(3 * mean, variance, standard_normal_prior=False).verdict == "healthy"


def observed_with_a_mixture(mean, variance, prior_variance):
    """Of posteriors whose prior is a mixture of one Gaussian; with it the true KL in nats."""
    shape = (*mean.shape, 1, 1)
    posterior = DiagonalGaussian(mean.view(shape), variance.log().view(shape))
    spread = torch.full(shape[1:], prior_variance)
    prior = GaussianMixture(torch.zeros(1), torch.zeros(1, *shape[1:]), spread.log()[None])
    moments = LatentMoments(mean.shape[1])
    moments.observe(posterior, prior)
    exact = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, prior_variance**0.5)).sum(1).mean().item()
    return moments.report(standard_normal_prior=False), exact


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_the_scale_of_a_latent_with_a_learned_prior_does_not_matter(scale):
    mean, variance = posteriors(8, units=8)
    health, exact = observed_with_a_mixture(scale * mean, scale**2 * variance, scale**2)
    assert health.verdict == "healthy" and health.active_units == 8 and health.kl is None
    assert torch.allclose(health.spread.float(), torch.tensor(0.81), rtol=0.05)
    assert health.levels[0].kl == pytest.approx(exact, abs=0.5) and exact > 6


def test_means_that_vary_little_within_wide_posteriors_are_collapsed():
    torch.manual_seed(0)
    health, _ = observed_with_a_mixture(0.5 * torch.randn(500, 8), torch.full((500, 8), 100.0), 100.0)
    assert health.verdict == "collapsed" and health.active_units == 0


def test_a_kl_without_closed_form_is_sampled():
    """Every unit is active, and still all of them together tell nearly nothing."""
    torch.manual_seed(0)
    mean = 0.15 * torch.randn(2000, 8)
    health, exact = observed_with_a_mixture(mean, torch.ones_like(mean), 1.0)
    assert health.levels[0].kl == pytest.approx(exact, abs=0.03) and exact < 0.1
    assert health.active_units == 8
    assert health.verdict == "collapsed" and "nats an image, under 1" in health.reason


def test_a_kl_of_the_whole_latent_is_judged():
    """A full covariance has no figure for each unit."""
    mean = 0.2 * posteriors(20)[0]
    moments = LatentMoments(20)
    moments.observe(
        FullGaussian(mean[..., None, None], torch.eye(20).expand(len(mean), -1, -1)), StandardNormal((20, 1, 1))
    )
    health = moments.report()
    assert health.kl is None and health.verdict == "collapsed" and "KL 0.32 nats" in health.reason


def of_levels(*nats, units=10):
    """Of levels whose means all vary alike, with `nats` an image each."""
    torch.manual_seed(0)
    moments = LatentMoments(*[units for _ in nats])
    mean = 2 * torch.randn(100, units * len(nats))
    kl = torch.cat([torch.full((100, units), each / units) for each in nats], 1)
    moments.update(mean, 0.1 * torch.ones_like(mean), kl)
    return moments.report(standard_normal_prior=False)


def test_below_the_top_a_unit_is_active_by_its_kl():
    """Its mean moves with the levels above even where the posterior is the prior."""
    assert of_levels(9.0, 0.0).active.tolist() == [True] * 10 + [False] * 10
    assert of_levels(9.0, 0.2).active_units == 20


def test_the_worst_level_decides_and_is_named():
    health = of_levels(9.0, 8.0, 0.0)
    assert health.verdict == "collapsed" and health.reason.startswith(
        "level 3 of 3, from the top: 0 of 10 units active"
    )
    assert [level.verdict for level in health.levels] == ["healthy", "healthy", "collapsed"]
    assert of_levels(0.5, 9.0).reason.startswith("level 1 of 2, from the top: KL 0.50 nats")
    healthy = of_levels(9.0, 8.0)
    assert healthy.verdict == "healthy" and "level 2: 10 of 10 units active, KL 8.00" in healthy.reason


@pytest.mark.parametrize("latent_prior", examples(LatentPriorConfig).values(), ids=str)
def test_a_level_whose_posterior_is_its_prior_is_collapsed_whatever_the_prior_of_the_top(latent_prior):
    torch.manual_seed(0)
    content = {
        "image_size": 8,
        "channels": 1,
        "backbone": {"kind": "mlp", "widths": [32]},
        "bottleneck": {"kind": "ladder", "dims": [4, 16], "width": 32, "merge": "precision_weighted"},
        "likelihood": {"kind": "bernoulli"},
    } | of_latent_prior(small(latent_prior))
    model = Autoencoder(AutoencoderConfig.model_validate(content)).eval()
    with torch.no_grad():
        weights = {name.removeprefix("bottleneck.evidence."): weight for name, weight in model.named_parameters()}
        weights["0.1.weight"] *= 3
        weights["0.1.bias"][4:] -= 4
        weights["1.1.weight"].zero_()
        weights["1.1.bias"][16:] = 20  # no evidence: the posterior is the prior
        out = model(torch.rand(256, 1, 8, 8))
        moments = LatentMoments(4, 16)
        moments.observe(out.bottleneck.posterior, out.latent_prior)
    health = moments.report(standard_normal_prior=False)
    assert health.active[4:].sum() == 0 and health.mean_variance[4:].max() > 0.01
    assert health.verdict == "collapsed" and "level 2 of 2" in health.reason
    assert health.levels[1].kl == pytest.approx(0, abs=1e-3)
    assert health.levels[0].kl is not None and health.levels[0].kl > 1


def test_a_deterministic_unit_that_moves_by_rounding_only_is_not_active_and_its_figures_are_numbers():
    mean = torch.stack([torch.randn(100), torch.full((100,), 3.0), 3 + 1e-7 * torch.randn(100)], 1)
    health = health_of(mean, torch.zeros(100, 3), kl=False)
    assert health.active.tolist() == [True, False, False] and health.verdict == "healthy"
    json.dumps(health.as_dict(), allow_nan=False)
    constant = health_of(torch.ones(100, 3), torch.zeros(100, 3), kl=False)
    assert constant.verdict == "collapsed" and constant.reason.startswith("0 of 3 units active")
    json.dumps(constant.as_dict(), allow_nan=False)


def test_a_top_level_that_is_far_from_its_prior_but_alike_for_all_images_is_collapsed():
    """What free bits of each level can be satisfied with."""
    top, below = torch.full((100, 2), 3.0), torch.randn(100, 3)
    moments = LatentMoments(2, 3)
    kl = torch.tensor([4.5, 4.5, 2.0, 2.0, 2.0]).expand(100, 5)
    moments.update(torch.cat((top, below), 1), torch.ones(100, 5), kl)
    assert moments.report(standard_normal_prior=True).reason.startswith("level 1 of 2, from the top: 0 of 2 units")
    assert moments.report(standard_normal_prior=True).levels[1].verdict == "healthy"


def test_levels_that_are_not_those_of_the_window_are_refused():
    posterior = DiagonalGaussian(torch.zeros(3, 4, 1, 1), torch.zeros(3, 4, 1, 1))
    with pytest.raises(ValueError, match="found 1 levels of the latent, expected 2"):
        LatentMoments(2, 2).observe(posterior, StandardNormal((4, 1, 1)))


def test_without_a_kl_the_moments_decide():
    health = health_of(*posteriors(20), kl=False)
    assert health.kl is None and health.verdict == "healthy" and health.reason == "20 of 20 units active"


def test_a_deterministic_latent_has_moments():
    mean = torch.randn(100, 3)
    health = health_of(mean, torch.zeros(100, 3), kl=False)
    assert torch.allclose(health.aggregate_variance.float(), mean.var(0, correction=0))
    assert health.verdict == "healthy" and health.active_units == 3


@pytest.mark.parametrize("scale", [0.01, 5.0])
def test_a_deterministic_latent_is_active_at_any_scale_and_weak_away_from_the_prior(scale):
    health = health_of(scale * torch.randn(100, 3), torch.zeros(100, 3), kl=False)
    assert health.active_units == 3 and health.verdict == "weak" and "nats a unit from the prior" in health.reason


def test_report_is_plain_json():
    report = health_of(*posteriors(2, units=4)).as_dict()
    assert json.loads(json.dumps(report)) == report and report["active"] == [True, True, False, False]


def test_an_empty_window_and_a_wrong_number_of_units_are_refused():
    with pytest.raises(ValueError, match="no image"):
        LatentMoments(4).report()
    with pytest.raises(ValueError, match="expected 4"):
        LatentMoments(4).update(torch.zeros(2, 3), torch.ones(2, 3))


def _one_window_of_two(rank, port):
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    mean, variance = 5 + torch.randn(30, 4), torch.rand(30, 4)
    whole, mine = LatentMoments(3, 1), LatentMoments(3, 1)
    whole.update(mean, variance, mean)
    rows = slice(20) if rank == 0 else slice(20, 30)
    mine.update(mean[rows], variance[rows], mean[rows])
    mine.all_reduce()
    distributed.destroy_process_group()
    found, expected = mine.report(), whole.report()
    assert found.images == 30 and found.total_correlation == pytest.approx(expected.total_correlation)
    assert [level.kl for level in found.levels] == pytest.approx([level.kl for level in expected.levels])
    assert torch.allclose(found.kl, expected.kl) and torch.allclose(found.aggregate_kl, expected.aggregate_kl)


def test_the_window_of_several_processes_is_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_one_window_of_two, (port,), nprocs=2)


def test_in_one_process_the_window_is_its_own():
    moments = LatentMoments(2)
    moments.update(torch.zeros(3, 2), torch.ones(3, 2))
    moments.all_reduce()
    assert moments.images == 3
