import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from tokenizer import Autoencoder, AutoencoderConfig, likelihood_bounds
from tokenizer.layers import Sequential

SCALE = 0.4


def linear_gaussian(posterior_log_variance: float = 0.0) -> Any:
    """x = W z + b + noise with z ~ N(0, 1) in two dimensions: p(x) is a Gaussian. Four pixels."""
    torch.manual_seed(0)
    config = {
        "image_size": 2,
        "channels": 1,
        "backbone": {"kind": "mlp", "widths": [1]},
        "bottleneck": {"kind": "gaussian", "dim": 2},
        "likelihood": {"kind": "normal", "scale": SCALE},
    }
    model = Autoencoder(AutoencoderConfig.model_validate(config)).eval()
    encode, decode = nn.Linear(4, 4), nn.Linear(2, 4)
    with torch.no_grad():
        encode.weight[2:] = 0
        encode.bias[2:] = posterior_log_variance
    model.encoder = Sequential(nn.Flatten(), encode, nn.Unflatten(1, (4, 1, 1)))
    model.decoder = Sequential(nn.Flatten(), decode, nn.Unflatten(1, (1, 2, 2)))
    return model


def exact(model: Any, x: torch.Tensor) -> torch.Tensor:
    """-ln p(x): pixels are (W z + b + 1) / 2 plus noise."""
    weight, bias = model.decoder[1].weight.detach().double() / 2, (model.decoder[1].bias.detach().double() + 1) / 2
    covariance = weight @ weight.T + SCALE**2 * torch.eye(4, dtype=torch.float64)
    return -MultivariateNormal(bias, covariance).log_prob(x.flatten(1).double())


def make_exact_posterior(model: Any) -> None:
    """Set the encoder to the true posterior of the linear model (with the diagonal of its covariance)."""
    with torch.no_grad():
        q, _ = torch.linalg.qr(torch.randn(4, 2))
        model.decoder[1].weight.copy_(2 * q)  # orthogonal columns: the true posterior is diagonal
        precision = 1 + 1 / SCALE**2
        gain = q.T / SCALE**2 / precision
        offset = (model.decoder[1].bias + 1) / 2
        model.encoder[1].weight[:2] = gain / 2  # the encoder sees 2 x - 1
        model.encoder[1].bias[:2] = gain @ (0.5 - offset)
        model.encoder[1].bias[2:] = math.log(1 / precision)


def images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(1))


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def test_with_the_true_posterior_both_bounds_are_the_likelihood():
    model = linear_gaussian()
    make_exact_posterior(model)
    bounds = likelihood_bounds(model, images(), 3, generators(3))
    for bound in (bounds.nll, bounds.negative_elbo):
        torch.testing.assert_close(bound, exact(model, images()), rtol=0, atol=1e-4)
    torch.testing.assert_close(bounds.effective_draws, torch.full((3,), 3.0, dtype=torch.float64), rtol=0, atol=1e-3)


def test_many_draws_reach_the_likelihood_from_above():
    model = linear_gaussian()
    bounds = likelihood_bounds(model, images(), 40_000, generators(3))
    expected = exact(model, images())
    torch.testing.assert_close(bounds.nll, expected, rtol=0, atol=0.05)
    assert (bounds.negative_elbo > expected + 0.05).all()


def test_the_elbo_is_that_of_two_gaussians():
    """E[-ln p(x | z)] + KL, both in closed form."""
    model = linear_gaussian(-1.0)
    encoded = model.encode(images()).posterior
    mean, variance = encoded.mean.flatten(1), encoded.log_variance.flatten(1).exp()
    weight, bias = model.decoder[1].weight / 2, (model.decoder[1].bias + 1) / 2
    residual = images().flatten(1) - mean @ weight.T - bias
    spread = (variance @ weight.square().T).sum(1)
    nll = (residual.square().sum(1) + spread) / (2 * SCALE**2) + 4 * (math.log(SCALE) + math.log(2 * math.pi) / 2)
    kl = 0.5 * (mean.square() + variance - 1 - variance.log()).sum(1)
    found = likelihood_bounds(model, images(), 40_000, generators(3)).negative_elbo
    torch.testing.assert_close(found.float(), (nll + kl).detach(), rtol=0.01, atol=0)


def test_the_bound_falls_as_draws_are_added():
    model = linear_gaussian()
    x = images(1).expand(400, -1, -1, -1)
    means = [likelihood_bounds(model, x, k, torch.Generator().manual_seed(k)).nll.mean() for k in (1, 4, 16, 64)]
    assert all(more < fewer for fewer, more in pairwise(means))


def test_blocks_of_draws_are_one_set_of_draws():
    """Against one sum over all weights."""
    model = linear_gaussian()
    log_weights = model.importance_weights(images())
    streams = generators(3)
    with torch.no_grad():
        all_draws = torch.cat([log_weights(k, streams) for k in (250, 250, 100)], 1).double()
    found = likelihood_bounds(model, images(), 600, generators(3))
    torch.testing.assert_close(found.nll, math.log(600) - all_draws.logsumexp(1))
    torch.testing.assert_close(found.negative_elbo, -all_draws.mean(1))
    torch.testing.assert_close(found.effective_draws, all_draws.exp().sum(1) ** 2 / (2 * all_draws).exp().sum(1))


def test_what_is_decoded_at_once_bounds_memory_and_changes_no_figure():
    model, seen = linear_gaussian(), []
    expected = likelihood_bounds(model, images(), 300, generators(3))
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = likelihood_bounds(model, images(), 300, generators(3), at_once=40)
    assert max(seen) == 3 * 40
    assert sum(seen) == 3 * 300
    torch.testing.assert_close(found.nll, expected.nll)


@pytest.mark.parametrize("name", ["draws", "at_once"])
def test_a_count_of_none_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: found 0"):
        likelihood_bounds(linear_gaussian(), images(), **({"draws": 3} | {name: 0}))


def test_an_image_does_not_see_the_batch():
    model = linear_gaussian()
    together = likelihood_bounds(model, images(), 300, generators(3)).nll
    alone = [likelihood_bounds(model, images()[i : i + 1], 300, generators(1, i)).nll for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-6, atol=1e-5)


def test_a_latent_that_is_not_random_has_no_bound():
    config = linear_gaussian().config.model_dump() | {"bottleneck": {"kind": "deterministic"}}
    with pytest.raises(ValueError, match="latent of a deterministic bottleneck is not random"):
        likelihood_bounds(Autoencoder(AutoencoderConfig.model_validate(config)), images(), 3)
