"""Hierarchical latents: densities and divergences against torch.distributions and autograd, on grids and vectors."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase, ObjectiveConfig, likelihood_bounds
from tokenizer.bottlenecks.ladder import Ladder, LadderConfig
from tokenizer.ladder import LadderPosterior, LadderPrior
from tokenizer.ladder.top_down import kl_between, product
from tokenizer.latent_priors.gaussian_mixture import GaussianMixture
from tokenizer.latents import LatentDistribution, Posterior
from tokenizer.layers import Sequential
from tokenizer.posteriors import DiagonalGaussian
from tokenizer.standard_normal import StandardNormal

DIMS = (3, 1, 2)
every_grid = pytest.mark.parametrize("grid", [(1, 1), (3, 4)])
every_merge = pytest.mark.parametrize("merge", ["concatenate", "precision_weighted"])


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def make(grid=(1, 1), merge="concatenate", dims=DIMS, b=3, is_linear=False) -> tuple[Any, LadderPosterior, LadderPrior]:
    """A bottleneck, the posterior of random features, and its prior."""
    torch.manual_seed(0)
    ladder: Any = Ladder(LadderConfig(dims=dims, width=5, merge=merge), grid)
    if is_linear:
        make_linear(ladder)
    posterior: Any = ladder(torch.randn(b, ladder.in_channels, *grid)).posterior
    return ladder, posterior, LadderPrior(StandardNormal(ladder.latent_shapes(grid)[0]), ladder.top_down)


def test_levels_halve_the_grid_and_stand_from_the_top_down():
    config = LadderConfig(dims=(3, 1, 2))
    assert config.shapes((5, 4)) == ((3, 2, 1), (1, 3, 2), (2, 5, 4))
    assert config.shapes((1, 1)) == ((3, 1, 1), (1, 1, 1), (2, 1, 1))


@every_grid
@every_merge
def test_it_is_a_posterior_and_a_prior(grid, merge):
    ladder, posterior, prior = make(grid, merge)
    total = sum(math.prod(shape) for shape in ladder.latent_shapes(grid))
    assert isinstance(posterior, Posterior) and isinstance(prior, LatentDistribution)
    assert posterior.sample(2).shape == (3, 2, total, 1, 1) and posterior.mean.shape == (3, total, 1, 1)
    assert prior.sample(4).shape == (4, total, 1, 1)
    assert ladder.decoder_input(posterior.mean).shape == (3, ladder.dim, *grid)


@every_grid
@every_merge
@pytest.mark.parametrize("of", ["posterior", "prior"])
def test_the_density_of_a_draw_is_that_of_its_noise_by_the_jacobian(grid, merge, of, monkeypatch):
    """ln q(z) = ln N(noise; 0, 1) - ln |det dz / dnoise|, whatever the networks are."""
    _, posterior, prior = make(grid, merge, b=1)
    noise = torch.randn(posterior.mean.numel())
    parts: list[Tensor] = []
    for module in ("ladder.posterior", "ladder.prior", "standard_normal"):
        monkeypatch.setattr(f"tokenizer.{module}.standard_normal", lambda shape, *_: parts.pop(0).view(*shape))

    def draw(v: Tensor) -> Tensor:
        top = math.prod(prior.network.shapes[0])
        parts[:] = [v] if of == "posterior" else [v[:top], v[top:]]
        return (posterior.sample(1) if of == "posterior" else prior.sample(1)).flatten()

    matrix: Any = jacobian(draw, noise)
    expected = Normal(0.0, 1.0).log_prob(noise).sum() - matrix.slogdet()[1]
    found = (posterior if of == "posterior" else prior).log_prob(draw(noise).view(1, 1, -1, 1, 1))
    torch.testing.assert_close(found.view(()), expected, rtol=1e-4, atol=1e-3)


def make_linear(ladder: Any) -> None:
    """Gates that are open, and variances that depend on nothing: the joint distributions are then Gaussian."""
    down = ladder.top_down
    with torch.no_grad():
        for layer in [*(state[0][1] for state in down.states), *(joint[1] for joint in getattr(down, "joints", ()))]:
            gate = len(layer.weight) // 2
            layer.weight[gate:], layer.bias[gate:] = 0, 40
        for head in (*down.priors, *getattr(down, "posteriors", ())):
            head[1].weight[len(head[1].weight) // 2 :] = 0
            head[1].bias.normal_()


def affine(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the first half of what a dense layer gives."""
    half = len(layer.weight) // 2
    return layer.weight[:half].detach(), layer.bias[:half].detach()


def joint_of(weight: Tensor, bias: Tensor, variance: Tensor, top: Normal) -> MultivariateNormal:
    """Of (z2, z1) with z2 ~ top and z1 ~ N(weight z2 + bias, variance)."""
    below = weight @ top.variance.diag()
    covariance = torch.cat(
        [
            torch.cat([top.variance.diag(), below.T], 1),
            torch.cat([below, below @ weight.T + variance.diag()], 1),
        ]
    )
    return MultivariateNormal(torch.cat([top.mean, weight @ top.mean + bias]), covariance)


def a_linear_pair(merge: str) -> tuple[Any, Any, MultivariateNormal, MultivariateNormal]:
    """Posterior and prior of two levels for one image, and torch's."""
    ladder, posterior, prior = make(merge=merge, dims=(3, 2), b=1, is_linear=True)
    down = ladder.top_down
    state, head = affine(down.states[0][0][1]), affine(down.priors[0][1])
    variance = down.priors[0][1].bias[2:].detach().exp()
    weight, bias = head[0] @ state[0], head[0] @ state[1] + head[1]
    of_prior = joint_of(weight, bias, variance, Normal(torch.zeros(3), torch.ones(3)))
    top, evidence = (each.detach().flatten() for each in posterior.evidence)
    if merge == "concatenate":
        joint, head = affine(down.joints[0][1]), affine(down.posteriors[0][1])
        of_joint = joint[0] @ state[0], joint[0] @ state[1] + joint[1] + evidence[:5]
        weight, bias = head[0] @ of_joint[0], head[0] @ of_joint[1] + head[1]
        variance = down.posteriors[0][1].bias[2:].detach().exp()
    else:
        precision = 1 / variance + 1 / evidence[2:].exp()
        share = 1 / (variance * precision)
        weight, bias = share[:, None] * weight, share * bias + evidence[:2] / evidence[2:].exp() / precision
        variance = 1 / precision
    return posterior, prior, joint_of(weight, bias, variance, Normal(top[:3], (top[3:] / 2).exp())), of_prior


@every_merge
def test_linear_networks_make_the_gaussians_of_torch(merge):
    posterior, prior, of_posterior, of_prior = a_linear_pair(merge)
    z = torch.randn(1, 7, 5, 1, 1)
    torch.testing.assert_close(posterior.log_prob(z), of_posterior.log_prob(z.flatten(2)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prior.log_prob(z), of_prior.log_prob(z.flatten(2)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(posterior.mean.flatten(), of_posterior.mean)


@every_merge
def test_draws_of_linear_networks_have_the_moments_of_torchs_gaussians(merge):
    posterior, prior, of_posterior, of_prior = a_linear_pair(merge)
    for drawn, reference in ((posterior.sample(100_000)[0], of_posterior), (prior.sample(100_000), of_prior)):
        scale = reference.variance.sqrt()
        assert ((drawn.flatten(1).mean(0) - reference.mean).abs() < 0.02 * scale).all()
        error = (drawn.flatten(1).T.cov() - reference.covariance_matrix).abs()
        assert (error < 0.03 * torch.outer(scale, scale)).all()


@every_merge
def test_the_kl_of_linear_networks_has_that_of_torch_as_its_mean(merge):
    posterior, prior, of_posterior, of_prior = a_linear_pair(merge)
    evidence = [each.expand(50_000, *each.shape[1:]) for each in posterior.evidence]
    many = LadderPosterior(posterior.network, evidence)
    elements = many.kl(prior, many.sample()[:, 0])
    assert elements is not None
    kl = torch.cat([level.flatten(1) for level in elements], 1).sum(1)
    assert abs(kl.mean() - kl_divergence(of_posterior, of_prior)) < 5 * kl.std() / len(kl) ** 0.5


def a_gaussian() -> tuple[DiagonalGaussian, Normal]:
    mean, log_variance = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    return DiagonalGaussian(mean, log_variance), Normal(mean, (log_variance / 2).exp())


def test_the_kl_between_gaussians_is_torchs():
    (one, of_one), (other, of_other) = a_gaussian(), a_gaussian()
    torch.testing.assert_close(kl_between(one, other), kl_divergence(of_one, of_other))


def test_the_product_of_gaussians_has_the_product_of_their_densities():
    (one, of_one), (other, of_other) = a_gaussian(), a_gaussian()
    merged, points = product(one, other), torch.randn(2, 4, 3, 2, 2)
    density = Normal(merged.mean, (merged.log_variance / 2).exp()).log_prob(points)
    both = of_one.log_prob(points) + of_other.log_prob(points)
    torch.testing.assert_close(density[0] - density[1], both[0] - both[1], rtol=1e-4, atol=1e-4)


@every_grid
@every_merge
def test_a_level_depends_on_those_above_it_alone(grid, merge):
    ladder, posterior, prior = make(grid, merge)
    shapes = ladder.latent_shapes(grid)
    z = posterior.sample(1)[:, 0].detach().clone().requires_grad_()
    elements = posterior.kl(prior, z)
    assert elements is not None and [level.shape[1:] for level in elements] == list(shapes)
    bounds = [sum(ladder.top_down.sizes[:i]) for i in range(len(shapes) + 1)]
    for level, kl in enumerate(elements[1:], 1):
        (gradient,) = torch.autograd.grad(kl.sum(), z, retain_graph=True)
        assert (gradient[:, bounds[level] :] == 0).all()
        assert all((gradient[:, bounds[i] : bounds[i + 1]] != 0).any() for i in range(level))
    assert not elements[0].grad_fn or torch.autograd.grad(elements[0].sum(), z, allow_unused=True)[0] is None
    (gradient,) = torch.autograd.grad(ladder.decoder_input(z).square().sum(), z)
    assert (gradient != 0).all()


def test_a_top_prior_without_a_closed_form_has_a_sampled_element_above_closed_ones():
    _, posterior, prior = make((3, 4))
    z = posterior.sample(1)

    class Same:
        """The standard normal, which nothing knows."""

        log_prob, sample = prior.top.log_prob, prior.top.sample

    found = posterior.kl(LadderPrior(Same(), prior.network), z[:, 0])
    closed = posterior.kl(prior, z[:, 0])
    assert found is not None and closed is not None
    top = z.flatten(2)[:, :, : closed[0][0].numel()].unflatten(2, closed[0].shape[1:])
    ratio = posterior.top.log_prob(top) - prior.top.log_prob(top)
    torch.testing.assert_close(found[0], ratio[:, :, None, None])
    assert all(torch.equal(*pair) for pair in zip(found[1:], closed[1:], strict=True))
    assert posterior.kl(StandardNormal((1, 1, 1)), z[:, 0]) is None


@every_grid
@every_merge
def test_what_drawing_has_computed_is_what_another_pass_computes(grid, merge):
    ladder, posterior, prior = make(grid, merge)
    z = posterior.sample(2, generators(3))
    torch.testing.assert_close(posterior.log_prob(z), posterior.log_prob(z.clone()))
    z = posterior.sample(1)
    kept, again = posterior.kl(prior, z[:, 0]), posterior.kl(prior, z[:, 0].clone())
    torch.testing.assert_close(kept, again)
    gradients = []
    for through in (lambda v: v, torch.clone):
        z = posterior.sample(1, generators(3))
        found = posterior.kl(prior, through(z)[:, 0])
        assert found is not None
        total = torch.stack([level.sum() for level in found]).sum() + posterior.log_prob(through(z)).sum()
        gradients.append(torch.autograd.grad(total, list(ladder.top_down.parameters()), retain_graph=True))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_views_of_draws_that_are_other_latents_are_computed_anew():
    _, posterior, _ = make(b=2)
    with torch.no_grad():
        z = posterior.sample(2)
        swapped = z.transpose(0, 1)
        torch.testing.assert_close(posterior.log_prob(swapped), posterior.log_prob(swapped.clone()))
        torch.testing.assert_close(posterior.log_prob(z[:, :1]), posterior.log_prob(z[:, :1].clone()))
        before = posterior.log_prob(z)
        z += 1
        assert not torch.equal(posterior.log_prob(z), before)
        torch.testing.assert_close(posterior.log_prob(z), posterior.log_prob(z.clone()))


def test_a_training_pass_computes_each_posterior_once():
    ladder, posterior, prior = make()
    calls: list[int] = []
    for joint in ladder.top_down.joints:
        joint.register_forward_hook(lambda *_: calls.append(1))
    z = posterior.sample(1)
    posterior.kl(prior, z[:, 0])
    posterior.log_prob(z)
    assert len(calls) == 2  # levels below the top


@every_merge
def test_a_detached_density_has_gradients_through_the_draw_alone(merge):
    ladder, posterior, _ = make(merge=merge)
    z = posterior.sample(2).detach()
    detached = posterior.detach()
    torch.testing.assert_close(detached.log_prob(z), posterior.log_prob(z))
    assert not detached.log_prob(z).requires_grad
    z.requires_grad_()
    (found,) = torch.autograd.grad(detached.log_prob(z).sum(), z)
    (expected,) = torch.autograd.grad(posterior.log_prob(z).sum(), z)
    torch.testing.assert_close(found, expected)
    assert all(weight.requires_grad and weight.grad is None for weight in ladder.parameters())


def test_an_image_with_its_own_generator_does_not_see_the_batch():
    ladder, posterior, _ = make((3, 4))
    together = posterior.sample(2, generators(3))
    for i in range(3):
        alone = LadderPosterior(ladder.top_down, [each[i : i + 1] for each in posterior.evidence])
        torch.testing.assert_close(alone.sample(2, [generators(3)[i]])[0], together[i], rtol=1e-4, atol=1e-4)


@every_merge
def test_the_encode_state_is_what_decides_the_posterior(merge):
    ladder, _, _ = make(merge=merge)
    h, decides = torch.randn(2, ladder.in_channels, 1, 1), set(ladder.encode_state())
    with torch.no_grad():
        before = ladder(h).posterior.sample(1, generators(2))
        for name, weight in ladder.named_parameters():
            kept = weight.clone()
            weight += 0.5
            changed = not torch.equal(ladder(h).posterior.sample(1, generators(2)), before)
            weight.copy_(kept)
            assert changed == (name in decides), name


def a_model(prior: dict[str, Any], **changes: Any) -> Any:
    torch.manual_seed(0)
    config = {
        "image_size": 2,
        "channels": 1,
        "backbone": {"kind": "mlp", "widths": [8]},
        "bottleneck": {"kind": "ladder", "dims": [2, 2], "width": 5, "merge": "precision_weighted"},
        "latent_prior": prior,
        "likelihood": {"kind": "normal", "scale": 0.5},
    }
    return Autoencoder(AutoencoderConfig.model_validate(config | changes)).eval()


def test_a_vamp_prior_is_of_the_top_level():
    model = a_model({"kind": "vamp", "pseudo_inputs": 6})
    joint, z = model.latent_distribution(), torch.randn(3, 4, 4, 1, 1)
    assert isinstance(joint.top, GaussianMixture) and joint.top.mean.shape == (6, 2, 1, 1)
    top = model.encode(model.latent_prior.pseudo_inputs.clamp(0, 1)).posterior.top
    torch.testing.assert_close(joint.top.mean, top.mean)
    below = LadderPrior(StandardNormal((2, 1, 1)), joint.network).log_prob(z)
    below = below - StandardNormal((2, 1, 1)).log_prob(z[:, :, :2])
    torch.testing.assert_close(joint.log_prob(z), joint.top.log_prob(z[:, :, :2]) + below)


def test_a_temperature_multiplies_the_noise_of_every_level():
    joint, stream = a_model({"kind": "standard_normal"}).latent_distribution(), torch.Generator().manual_seed(0)
    cold = joint.sample(4, torch.Generator().manual_seed(0), 0.25)
    top, noise = (0.25 * torch.randn(4, 2, 1, 1, generator=stream) for _ in range(2))
    state = joint.network.states_above(joint.network.split(torch.cat([top, torch.zeros(4, 2, 1, 1)], 1)))[1]
    below = joint.network.prior(1, state)
    expected = torch.cat([top, below.mean + (0.5 * below.log_variance).exp() * noise], 1)
    torch.testing.assert_close(cold, expected)


def test_the_importance_bound_of_a_linear_model_falls_to_its_exact_likelihood():
    model = a_model({"kind": "standard_normal"})
    make_linear(model.bottleneck)
    dense = torch.nn.Linear(model.bottleneck.dim, 4)
    model.decoder = Sequential(torch.nn.Flatten(), dense, torch.nn.Unflatten(1, (1, 2, 2)))
    down = model.bottleneck.top_down
    with torch.no_grad():  # posteriors near the priors: no draw has a large weight
        for evidence, log_variance in zip(model.bottleneck.evidence, (0.5, 3.0), strict=True):
            evidence[1].weight.mul_(0.1)
            evidence[1].bias[2:] = log_variance
    state, head = affine(down.states[0][0][1]), affine(down.priors[0][1])
    prior = joint_of(
        head[0] @ state[0],
        head[0] @ state[1] + head[1],
        down.priors[0][1].bias[2:].detach().exp(),
        Normal(torch.zeros(2), torch.ones(2)),
    )

    def image(v: Tensor) -> Tensor:  # the decoder's outputs are in [-1, 1]
        return (model.decoder(model.bottleneck.decoder_input(v.view(1, 4, 1, 1))).flatten() + 1) / 2

    of_pixels: Any = jacobian(image, torch.zeros(4))
    bias = image(torch.zeros(4)).detach()
    covariance = of_pixels @ prior.covariance_matrix @ of_pixels.T + 0.25 * torch.eye(4)
    exact = MultivariateNormal(of_pixels @ prior.mean + bias, covariance)
    x = torch.rand(3, 1, 2, 2)
    bounds = likelihood_bounds(model, x, 20_000, generators(3))
    torch.testing.assert_close(bounds.nll.float(), -exact.log_prob(x.flatten(1)), rtol=0, atol=0.1)
    assert (bounds.negative_elbo > bounds.nll).all()


@every_merge
def test_the_doubly_reparameterized_gradient_has_the_same_mean(merge):
    """Also of the weights that posterior, prior and decoder share."""
    bottleneck = {"kind": "ladder", "dims": [2, 1, 2], "width": 3, "merge": merge}
    model, means = a_model({"kind": "standard_normal"}, bottleneck=bottleneck), {}
    x = torch.rand(1, 1, 2, 2).expand(400, -1, -1, -1)
    for estimator in ("reparameterized", "doubly_reparameterized"):
        objective = {"weights": {"nll": 1, "kl": 1}, "draws": 4, "gradient_estimator": estimator}
        phase, found = AutoencoderPhase(model, ObjectiveConfig.model_validate(objective)), []
        for step in range(30):
            loss, _ = phase({"image": x}, step)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            found.append(torch.cat([gradient.flatten() for gradient in gradients]))
        means[estimator] = torch.stack(found).double()
    plain, doubly = means.values()
    error = ((plain.var(0) + doubly.var(0)) / 30).sqrt()
    assert ((plain.mean(0) - doubly.mean(0)).abs() <= 6 * error + 1e-6).all()
    assert (plain.mean(0).abs() > 6 * error).double().mean() > 0.5


def test_every_level_has_its_own_free_bits():
    model, x = a_model({"kind": "standard_normal"}), torch.rand(5, 1, 2, 2)
    guard = {"kind": "free_bits", "nats": 0.7, "per": "level"}
    weights = {"nll": {"kind": "linear", "start": 0, "end": 1, "steps": 10}, "kl": 1}
    objective = ObjectiveConfig.model_validate({"weights": weights, "kl_guard": guard})
    torch.manual_seed(0)
    loss, _ = AutoencoderPhase(model, objective)({"image": x}, 0)
    torch.manual_seed(0)
    elements = model(x).kl_elements
    assert len(elements) == 2
    expected = sum(level.sum((1, 2, 3)).mean().clamp(min=0.7) for level in elements)
    torch.testing.assert_close(loss * model.dims, expected)


def test_one_level_and_a_range_the_wrong_way_round_are_refused():
    with pytest.raises(ValidationError, match="at least 2 items"):
        LadderConfig(dims=(4,))
    with pytest.raises(ValidationError, match=r"log_variance_range: found 2.0 to -6.0"):
        LadderConfig(log_variance_range=(2, -6))
