"""What every posterior of the union promises, and the densities of those that are not diagonal Gaussians."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from tests.tokenizer.members import examples
from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase, ObjectiveConfig, likelihood_bounds
from tokenizer.bottlenecks import BottleneckConfig, build_bottleneck
from tokenizer.bottlenecks.flow_gaussian import FlowGaussianBottleneck, FlowGaussianConfig
from tokenizer.bottlenecks.full_gaussian import FullGaussianBottleneck, FullGaussianConfig
from tokenizer.latent_priors.mixture import MixtureConfig, MixturePrior
from tokenizer.latents import Posterior
from tokenizer.layers import Sequential
from tokenizer.posteriors import FullGaussian
from tokenizer.standard_normal import StandardNormal

MEMBERS = {name: config for name, config in examples(BottleneckConfig).items() if config.continuous}
GRID = (2, 1)


def make(name: str, b: int = 3) -> tuple[Any, Any, Tensor]:
    """A posterior, its bottleneck, and the features that it comes from."""
    torch.manual_seed(0)
    bottleneck: Any = build_bottleneck(MEMBERS[name], GRID)
    h = torch.randn(b, bottleneck.in_channels, *GRID, requires_grad=True)
    return bottleneck(h).posterior, bottleneck, h


def a_prior(bottleneck: Any) -> Any:
    """N(0, 1), of the top level where there are levels."""
    return bottleneck.joint_prior(StandardNormal(bottleneck.latent_shapes(GRID)[0]), bottleneck)


def closed_kl(posterior: Any, bottleneck: Any) -> Any:
    return posterior.kl(a_prior(bottleneck), posterior.sample(1)[:, 0])


RANDOM = [name for name in MEMBERS if make(name)[0] is not None]
CLOSED = [name for name in RANDOM if closed_kl(*make(name)[:2]) is not None]
FLOWS = [name for name in RANDOM if name.startswith("flow_gaussian")]
every_posterior = pytest.mark.parametrize("name", RANDOM)
every_closed = pytest.mark.parametrize("name", CLOSED)
every_flow = pytest.mark.parametrize("name", FLOWS)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@every_posterior
def test_it_says_whether_its_kl_has_a_closed_form(name):
    """Against N(0, 1), and against a mixture, from which no posterior's KL is known."""
    posterior, bottleneck, _ = make(name)
    assert posterior.has_closed_form(a_prior(bottleneck)) == (name in CLOSED)
    mixture = MixturePrior(MixtureConfig(components=2), bottleneck.latent_shapes(GRID)[0])
    assert not posterior.has_closed_form(bottleneck.joint_prior(mixture, bottleneck))


@every_posterior
def test_it_keeps_the_protocol(name):
    posterior, bottleneck, h = make(name)
    assert isinstance(posterior, Posterior)
    z, levels = posterior.sample(5), bottleneck.latent_shapes(GRID)
    shape = levels[0] if len(levels) == 1 else (sum(map(math.prod, levels)), 1, 1)
    assert z.shape == (3, 5, *shape) and z.dtype == posterior.log_prob(z).dtype == torch.float32
    assert posterior.log_prob(z).shape == (3, 5) and posterior.mean.shape == (3, *shape)
    (gradient,) = torch.autograd.grad((z.sum() + posterior.log_prob(z).square().sum()), h)
    assert gradient.isfinite().all() and (gradient != 0).any(3).any(2).any(0).all()


@every_posterior
def test_the_density_of_a_draw_is_that_of_any_latent_there(name):
    posterior, bottleneck, h = make(name)
    first, second = (posterior.sample(5) for _ in range(2))
    fresh = bottleneck(h).posterior
    for z in (first, second, second + 1, first[:, :2]):
        torch.testing.assert_close(posterior.log_prob(z), fresh.log_prob(z), rtol=1e-4, atol=1e-3)


@every_posterior
def test_both_ways_to_a_density_have_the_same_gradient(name):
    posterior, bottleneck, h = make(name)
    gradients = []
    for through in (lambda z: z, torch.clone):
        z = posterior.sample(2, generators(0, 1, 2))
        density, learned = posterior.log_prob(through(z)).sum(), [h, *bottleneck.parameters()]
        gradients.append(torch.autograd.grad(density, learned, retain_graph=True, materialize_grads=True))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


@every_posterior
def test_an_image_with_its_own_generator_does_not_see_the_batch(name):
    posterior, bottleneck, h = make(name)
    together = posterior.sample(2, generators(5, 6, 7))
    for i, seed in enumerate((5, 6, 7)):
        alone = bottleneck(h[i : i + 1]).posterior
        torch.testing.assert_close(alone.sample(2, generators(seed))[0], together[i], rtol=1e-5, atol=1e-5)


@every_posterior
def test_draws_have_the_density_that_is_claimed(name):
    """Moments of draws are those of draws of a wider normal, weighed by the ratio of the densities."""
    posterior, _, _ = make(name, b=1)
    with torch.no_grad():
        drawn = posterior.sample(20_000).flatten(2)[0]
        wide = Normal(drawn.mean(0), 1.4 * drawn.std(0))
        z = wide.sample((40_000,))
        ratio = (
            (posterior.log_prob(z.view(1, -1, *posterior.mean.shape[1:]))[0] - wide.log_prob(z).sum(1)).double().exp()
        )
        error = 5 * ratio.std() / len(z) ** 0.5
        assert error < 0.3 and abs(ratio.mean() - 1) < error
        for function in (lambda v: v, torch.square, torch.cos):
            weighted = ratio[:, None] * function(z)
            error = 5 * (weighted.var(0) / len(z) + function(drawn).var(0) / len(drawn)).sqrt()
            assert ((weighted.mean(0) - function(drawn).mean(0)).abs() < error).all()


@every_posterior
def test_a_detached_posterior_has_the_same_density_and_no_gradient(name):
    posterior, _, _ = make(name)
    detached = posterior.detach()
    if detached is not None:
        z = posterior.sample(2).detach()
        torch.testing.assert_close(detached.log_prob(z), posterior.log_prob(z))
        assert not detached.log_prob(z).requires_grad


@every_closed
def test_the_closed_kl_is_the_mean_of_the_log_ratio_over_draws(name):
    """Of a level, given the draw of those above it."""
    _, bottleneck, h = make(name)
    posterior, prior = bottleneck(h.detach().repeat_interleave(5000, 0)).posterior, a_prior(bottleneck)
    z = posterior.sample(1)
    ratio = (posterior.log_prob(z) - prior.log_prob(z)).view(3, -1)
    elements = posterior.kl(prior, z[:, 0])
    assert len(elements) == len(bottleneck.latent_shapes(GRID))
    closed = torch.stack([level.sum((1, 2, 3)) for level in elements]).sum(0).view(3, -1)
    error = 5 * ((ratio.var(1) + closed.var(1)) / 5000) ** 0.5
    assert ((ratio.mean(1) - closed.mean(1)).abs() < error).all()
    assert posterior.kl(torch.nn.Identity(), z[:, 0]) is None


def torchs(posterior: FullGaussian) -> MultivariateNormal:
    return MultivariateNormal(posterior.mean.flatten(1), scale_tril=posterior.factor)


def test_a_full_gaussian_is_torchs():
    posterior, _, _ = make("full_gaussian")
    z, reference = torch.randn(3, 5, 4, *GRID), torchs(posterior)
    expected = reference.log_prob(z.flatten(2).transpose(0, 1)).T
    torch.testing.assert_close(posterior.log_prob(z), expected)
    normal = MultivariateNormal(torch.zeros(8), torch.eye(8))
    (kl,) = posterior.kl(StandardNormal((4, *GRID)), z[:, 0])
    assert kl.shape == (3, 1, 1, 1)
    torch.testing.assert_close(kl.flatten(), kl_divergence(reference, normal))
    covariance = posterior.sample(100_000)[0].flatten(1).T.cov()
    torch.testing.assert_close(covariance, reference.covariance_matrix[0], rtol=0.05, atol=0.05)


def test_every_pair_of_elements_has_a_feature_of_its_own():
    bottleneck = FullGaussianBottleneck(FullGaussianConfig(dim=3), GRID)
    h = torch.zeros(1, bottleneck.in_channels, *GRID)
    matrix = jacobian(lambda v: bottleneck(v).posterior.factor, h).view(36, -1)
    assert torch.linalg.matrix_rank(matrix[:, 6:]) == 6 + 15
    assert bottleneck.in_channels == 6 + math.ceil(15 / 2)


def test_a_full_gaussian_ignores_autocast():
    posterior, _, _ = make("full_gaussian")
    with torch.autocast("cpu", torch.bfloat16):
        draws = posterior.sample(2, generators(0, 1, 2))
    torch.testing.assert_close(draws, posterior.sample(2, generators(0, 1, 2)), rtol=0, atol=0)


def test_a_full_covariance_of_a_large_latent_is_refused():
    config = {
        "image_size": 32,
        "channels": 1,
        "backbone": {"kind": "conv", "widths": [16, 32], "residual_blocks": 1, "residual_width": 16},
        "bottleneck": {"kind": "full_gaussian", "dim": 5},
        "likelihood": {"kind": "bernoulli"},
    }
    with pytest.raises(ValidationError, match=r"320 elements \(5 channels, 8 x 8 positions\), expected at most 256"):
        AutoencoderConfig.model_validate(config)
    AutoencoderConfig.model_validate(config | {"bottleneck": {"kind": "full_gaussian", "dim": 4}})


@every_flow
def test_the_log_determinant_of_a_draw_is_that_of_the_jacobian(name):
    posterior, _, _ = make(name)
    z = posterior.sample(1, generators(0, 1, 2))
    start = posterior.base.sample(1, generators(0, 1, 2))
    for i in range(3):
        matrix = jacobian(lambda v, i=i: posterior.flow(v, posterior.context[i])[0], start[i].flatten())
        expected = posterior.base.log_prob(start)[i] - matrix.slogdet()[1]
        torch.testing.assert_close(posterior.log_prob(z)[i], expected, rtol=1e-4, atol=1e-4)


@every_flow
def test_the_mean_of_the_base_is_what_is_shown(name):
    posterior, _, _ = make(name)
    posterior.base.log_variance = torch.full_like(posterior.base.log_variance, -60)
    torch.testing.assert_close(posterior.sample(1)[:, 0], posterior.mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flow", ["inverse_autoregressive", "coupling"])
def test_the_density_of_a_flow_posterior_integrates_to_one(flow):
    torch.manual_seed(0)
    bottleneck = FlowGaussianBottleneck(FlowGaussianConfig(dim=2, flow=flow), (1, 1))
    axis = torch.linspace(-10, 10, 401)
    z = torch.cartesian_prod(axis, axis).view(1, -1, 2, 1, 1)
    with torch.no_grad():
        density = bottleneck(torch.randn(1, bottleneck.in_channels, 1, 1)).posterior.log_prob(z).double().exp()
    assert abs(density.sum() * (axis[1] - axis[0]) ** 2 - 1) < 1e-3


def test_an_inverse_autoregressive_draw_and_its_density_cost_one_pass():
    posterior, bottleneck, _ = make("flow_gaussian")
    calls = []
    bottleneck.flow.bijection.transforms[0].hyper.register_forward_hook(lambda *_: calls.append(1))
    z = posterior.sample(3)
    posterior.log_prob(z)
    assert len(calls) == 1
    posterior.log_prob(z.clone())
    assert len(calls) > 8


SCALE = 0.4


def linear_model(bottleneck: dict[str, Any], **changes: Any) -> Any:
    """x = W z + b + noise with z ~ p(z) in two dimensions; four pixels. Features do not depend on the image."""
    torch.manual_seed(0)
    config = {
        "image_size": 2,
        "channels": 1,
        "backbone": {"kind": "mlp", "widths": [8]},
        "bottleneck": bottleneck,
        "likelihood": {"kind": "normal", "scale": SCALE},
    }
    model = Autoencoder(AutoencoderConfig.model_validate(config | changes)).eval()
    model.decoder = Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 4), torch.nn.Unflatten(1, (1, 2, 2)))
    return model


def of_pixels(model: Any) -> tuple[Tensor, Tensor]:
    """W and b in units of pixels in [0, 1]: the decoder's outputs are in [-1, 1]."""
    layer = model.decoder[1]
    return layer.weight.detach().double() / 2, (layer.bias.detach().double() + 1) / 2


def exact(model: Any, x: Tensor) -> Tensor:
    """ln p(x) for a standard normal prior, or ln of the mean over the components of a mixture."""
    weight, bias = of_pixels(model)
    prior = model.latent_distribution()
    if isinstance(prior, StandardNormal):
        log_weight, mean, variance = torch.zeros(1), torch.zeros(1, 2), torch.ones(1, 2)
    else:
        log_weight, mean, variance = prior.log_weight, prior.mean.flatten(1), prior.log_variance.flatten(1).exp()
    noise = SCALE**2 * torch.eye(4).double()
    found = []
    for log_share, centre, spread in zip(log_weight.double(), mean.double(), variance.double(), strict=True):
        normal = MultivariateNormal(weight @ centre + bias, weight @ spread.diag() @ weight.T + noise)
        found.append(log_share + normal.log_prob(x.flatten(1).double()))
    return torch.stack(found).logsumexp(0).detach()


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(1))


class TruePosterior(torch.nn.Module):
    """The features of the true posterior of a linear model under N(0, 1), a Gaussian with correlated elements."""

    def __init__(self, model: Any):
        super().__init__()
        self.weight, self.bias = of_pixels(model)

    def forward(self, inputs: Tensor, condition: Tensor | None = None) -> Tensor:
        x = (inputs.flatten(1).double() + 1) / 2
        covariance = (torch.eye(2) + self.weight.T @ self.weight / SCALE**2).inverse()
        mean = (x - self.bias) @ self.weight @ covariance / SCALE**2
        factor = torch.linalg.cholesky(covariance)
        deviation = factor.diagonal()
        below = (factor[1, 0] / deviation[1] * 2**0.5).view(1, 1)
        rest = torch.cat([2 * deviation.log()[None], below], 1).expand(len(x), -1)
        return torch.cat([mean, rest], 1).float()[:, :, None, None]

    def parameters(self, recurse: bool = True):
        yield torch.nn.Parameter(torch.zeros(1))


def test_with_the_true_posterior_the_elbo_of_a_linear_model_is_its_likelihood():
    model = linear_model({"kind": "full_gaussian", "dim": 2})
    model.decoder[1].weight.data = torch.tensor([[1.0, 0.5], [0.7, 1.0], [0.0, 0.3], [-1.0, 0.2]])
    model.encoder = TruePosterior(model)
    x = images()
    bounds = likelihood_bounds(model, x, 10, generators(0, 1, 2, 3))
    torch.testing.assert_close(bounds.nll, -exact(model, x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bounds.negative_elbo, -exact(model, x), rtol=1e-4, atol=1e-4)
    out = model(x.repeat(5000, 1, 1, 1))  # here the KL is the closed one
    elbo = -(out.terms["nll"] + out.terms["kl"]).view(5000, 4)
    error = 5 * elbo.std(0) / 5000**0.5
    assert ((elbo.mean(0) - exact(model, x)).abs() < error).all() and error.max() < 0.2


# The exact likelihood under a VampPrior is known where the components are diagonal Gaussians.
PRIORS = [{"kind": "standard_normal"}, {"kind": "mixture", "components": 3}]
ONE_LEVEL = [name for name in RANDOM if "range" not in name and len(make(name)[1].latent_shapes(GRID)) == 1]
PAIRS = [("gaussian", {"kind": "vamp"}), *((name, prior) for name in ONE_LEVEL for prior in PRIORS)]


@pytest.mark.parametrize(("name", "prior"), PAIRS)
def test_the_importance_bound_falls_to_the_exact_likelihood(name, prior):
    model = linear_model(MEMBERS[name].model_dump() | {"dim": 2}, latent_prior=prior)
    # A posterior wider than the true one everywhere: no weight is large, and the bound is loose.
    model.encoder[-2].weight.data *= 0.1
    model.encoder[-2].bias.data[2:4] = 1.5
    x = images()
    many = x.repeat(400, 1, 1, 1)
    bounds = [likelihood_bounds(model, many, draws).nll for draws in (1, 8, 64)]
    for looser, tighter in pairwise(bounds):
        assert looser.mean() > tighter.mean() + 4 * (looser - tighter).std() / len(many) ** 0.5
    torch.testing.assert_close(likelihood_bounds(model, x, 20_000).nll, -exact(model, x), rtol=0, atol=0.1)


def test_a_flow_posterior_learns_a_posterior_that_is_no_diagonal_gaussian():
    """Trained on one image of a linear model, its bound is below the best of a diagonal Gaussian."""
    reached = {}
    for kind in ("gaussian", "flow_gaussian"):
        model = linear_model({"kind": kind, "dim": 2})
        model.decoder[1].weight.data = torch.tensor([[1.0, 0.9], [1.0, 0.9], [1.0, 1.1], [1.0, 1.1]])
        model.decoder.requires_grad_(False)
        phase = AutoencoderPhase(model, ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 1}}))
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        batch = {"image": images(1).repeat(64, 1, 1, 1)}
        for step in range(250):
            optimizer.zero_grad()
            phase(batch, step)[0].backward()
            optimizer.step()
        gap = likelihood_bounds(model, images(1), 4000).negative_elbo + exact(model, images(1))
        reached[kind] = gap.item()
    assert 0 < reached["flow_gaussian"] < 0.5 * reached["gaussian"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gradient_estimator": "doubly_reparameterized"},
            "but the density of a flow_gaussian posterior cannot be",
        ),
        ({"kl_guard": {"kind": "free_bits", "nats": 1.0}}, "kl_guard: the KL has no closed form"),
    ],
)
def test_what_a_flow_posterior_does_not_offer_is_refused_before_training(options, message):
    objective = ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 1}} | options)
    with pytest.raises(ValueError, match=message):
        AutoencoderPhase(linear_model({"kind": "flow_gaussian", "dim": 2}), objective)
