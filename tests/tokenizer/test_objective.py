import math

import pytest
import torch
from torch import nn

from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase, ObjectiveConfig
from tokenizer.likelihoods import NormalConfig, build_likelihood
from tokenizer.objective import perplexity, psnr, weighted_sum

BETA = {"start": 0, "end": 4, "steps": 8, "kind": "linear"}


def vae(size: int = 8) -> Autoencoder:
    torch.manual_seed(0)
    config = {
        "image_size": size,
        "channels": 1,
        "backbone": {"kind": "conv", "widths": [4], "residual_blocks": 1, "residual_width": 4},
        "bottleneck": {"kind": "gaussian", "dim": 2},
        "likelihood": {"kind": "bernoulli"},
    }
    return Autoencoder(AutoencoderConfig.model_validate(config))


def vq() -> Autoencoder:
    torch.manual_seed(0)
    config = vae().config.model_dump() | {"bottleneck": {"kind": "vq", "num_codes": 8, "dim": 4}}
    return Autoencoder(AutoencoderConfig.model_validate(config))


def weights(**named) -> dict:
    return ObjectiveConfig(weights=named).weights


def test_the_sum_is_weighted_at_the_step_and_divided_once():
    terms = {"nll": torch.tensor([2.0, 4.0]), "kl": torch.tensor([1.0, 2.0])}
    for step, beta in [(0, 0.0), (4, 2.0), (8, 4.0)]:
        loss = weighted_sum(terms, weights(nll=10, kl=BETA), step, dims=5)
        assert loss.item() == pytest.approx((10 * 3 + beta * 1.5) / 5)


@pytest.mark.parametrize("repeat", ["area", "batch"])
def test_a_larger_picture_or_batch_does_not_rescale_beta(repeat):
    """The same content twice as wide, or twice as often: nll and kl keep their balance and the loss its value."""
    likelihood = build_likelihood(NormalConfig(scale=0.2), 1)
    x, params = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    mean, log_variance = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)

    def parts(axis: int | None) -> list[float]:
        twice = (lambda t: t) if axis is None else (lambda t: torch.cat([t, t], axis))
        m, v = twice(mean), twice(log_variance)
        kl = ((m.square() + v.exp() - 1 - v) / 2).flatten(1).sum(1)
        terms = {"nll": likelihood.nll(twice(params), twice(x)), "kl": kl}
        dims = twice(x)[0].numel()
        return [weighted_sum(terms, weights(nll=a, kl=b), 0, dims).item() for a, b in [(1, 0), (0, 1), (1, 3)]]

    assert parts({"area": 3, "batch": 0}[repeat]) == pytest.approx(parts(None), rel=1e-5)


@pytest.mark.parametrize("size", [8, 16])
def test_beta_weighs_one_nat_of_kl_like_one_nat_of_nll_at_every_size(size):
    phase = AutoencoderPhase(vae(size), ObjectiveConfig(weights={"nll": 1, "kl": 2}))
    loss, metrics = phase.eval()({"image": torch.rand(3, 1, size, size)}, 0)
    assert loss.item() == pytest.approx((metrics["nll"] + 2 * metrics["kl"]).item() / size**2, rel=1e-5)


@pytest.mark.parametrize("named", [{"nll": 1}, {"nll": 1, "kl": 1, "commitment": 1}, {"nll": 1, "kll": 1}])
def test_weights_and_terms_must_name_each_other(named):
    with pytest.raises(ValueError, match=r"\['kl', 'nll'\]") as caught:
        AutoencoderPhase(vae(), ObjectiveConfig(weights=named))
    assert str(sorted(named)) in str(caught.value)
    with pytest.raises(ValueError, match="every term needs a weight"):
        weighted_sum({"nll": torch.ones(1), "kl": torch.ones(1)}, weights(**named), 0, 1)


def test_building_a_phase_leaves_the_model_as_it_was():
    model = vq()
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    AutoencoderPhase(model, ObjectiveConfig(weights={"nll": 1, "commitment": 1}))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and model.training


def test_metrics_are_detached_scalars_by_name():
    phase = AutoencoderPhase(vq(), ObjectiveConfig(weights={"nll": 1, "commitment": 0.25}))
    batch = {"image": torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)}
    loss, metrics = phase(batch, 0)
    assert set(metrics) == {"nll", "commitment", "loss", "perplexity_batch"}
    assert set(phase.eval()(batch, 0)[1]) == {*metrics, "psnr"}
    assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())
    assert {value.shape for value in metrics.values()} == {()}


def test_the_loss_is_the_negative_elbo_of_a_vae():
    model = vae().eval()
    phase = AutoencoderPhase(model, ObjectiveConfig(weights={"nll": 1, "kl": 1})).eval()
    x = torch.rand(5, 1, 8, 8)
    posterior = torch.distributions.Normal(
        (out := model.encode(x)).posterior.mean, (out.posterior.log_variance / 2).exp()
    )
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    p = model.reconstruct(x)
    nll = -(x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2, 3))
    assert phase({"image": x}, 0)[0].item() == pytest.approx((nll + kl).mean().item() / 64, rel=1e-4)


def test_another_phase_may_hold_the_same_model_and_see_the_same_batch():
    class Watcher(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.head = model, nn.Linear(64, 1)

        def forward(self, batch, step):
            return self.head(self.model.reconstruct(batch["image"]).detach().flatten(1)).mean(), {}

    model = vae()
    first = AutoencoderPhase(model, ObjectiveConfig(weights={"nll": 1, "kl": 1}))
    second = Watcher(first.model)
    optimizers = [torch.optim.SGD(model.parameters(), 0.1), torch.optim.SGD(second.head.parameters(), 0.1)]
    batch = {"image": torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)}
    for phase, optimizer in zip((first, second), optimizers, strict=True):
        before = [p.clone() for p in model.parameters()]
        optimizer.zero_grad()
        phase(batch, 0)[0].backward()
        optimizer.step()
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert moved == (phase is first)


def test_perplexity_counts_codes_in_equal_use():
    every = torch.arange(8).view(2, 2, 2, 1)
    assert perplexity(every, 8).item() == pytest.approx(8)
    assert perplexity(torch.zeros_like(every), 8).item() == pytest.approx(1)
    assert perplexity(torch.cat([every, torch.zeros_like(every)], -1), 8).item() == pytest.approx((8 + 1) / 2)


def test_psnr_in_decibels():
    black = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    assert psnr(torch.full((1, 1, 4, 4), 0.1), black).item() == pytest.approx(-20 * math.log10(0.1), rel=1e-5)
    assert psnr(torch.zeros(1, 1, 4, 4), black).item() == pytest.approx(100)
