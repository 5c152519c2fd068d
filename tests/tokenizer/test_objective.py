import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.tokenizer.members import examples, of_latent_prior
from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderOutput, AutoencoderPhase, ObjectiveConfig
from tokenizer.bottlenecks import BottleneckOutput
from tokenizer.latent_priors import LatentPriorConfig
from tokenizer.likelihoods import NormalConfig, build_likelihood
from tokenizer.objective import combine, image_loss, importance_bound, perplexity
from tokenizer.posteriors import DiagonalGaussian
from tokenizer.standard_normal import StandardNormal

BETA = {"start": 0, "end": 4, "steps": 8, "kind": "linear"}


def vae(size: int = 8) -> Any:
    torch.manual_seed(0)
    config = {
        "image_size": size,
        "channels": 1,
        "backbone": {"kind": "conv", "widths": [4], "residual_blocks": 1, "residual_width": 4},
        "bottleneck": {"kind": "gaussian", "dim": 2},
        "likelihood": {"kind": "bernoulli"},
    }
    return Autoencoder(AutoencoderConfig.model_validate(config))


def vq() -> Any:
    torch.manual_seed(0)
    config = vae().config.model_dump() | {"bottleneck": {"kind": "vq", "num_codes": 8, "dim": 4}}
    return Autoencoder(AutoencoderConfig.model_validate(config))


def objective_of(named: dict[str, Any], draws: int = 1) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"weights": named, "draws": draws})


def weights(**named) -> dict:
    return objective_of(named).weights


def phase_of(model: Autoencoder, draws: int = 1, **named) -> AutoencoderPhase:
    return AutoencoderPhase(model, objective_of(named, draws))


def loss_of(terms, named, step=0, dims=1, batch_terms=None) -> torch.Tensor:
    return combine(output_of(terms, batch_terms), ObjectiveConfig.model_construct(weights=named), step) / dims


def output_of(terms, batch_terms=None) -> AutoencoderOutput:
    b, k = max((term.shape for term in terms.values()), key=lambda shape: shape[1])
    z = torch.zeros(b, k, 1, 1, 1)
    return AutoencoderOutput(BottleneckOutput(z[:, 0]), z, torch.zeros(b * k, 1, 1, 1), terms, batch_terms or {})


def test_the_sum_is_weighted_at_the_step_and_divided_once():
    terms = {"nll": torch.tensor([[2.0], [4.0]]), "kl": torch.tensor([[1.0], [2.0]])}
    for step, beta in [(0, 0.0), (4, 2.0), (8, 4.0)]:
        loss = loss_of(terms, weights(nll=10, kl=BETA), step, dims=5)
        assert loss.item() == pytest.approx((10 * 3 + beta * 1.5) / 5)


def test_terms_of_the_batch_are_added_as_they_are():
    terms, batch_terms = {"nll": torch.tensor([[2.0], [4.0]])}, {"entropy": torch.tensor(0.5)}
    loss = loss_of(terms, weights(nll=1, entropy=BETA), 4, dims=5, batch_terms=batch_terms)
    assert loss.item() == pytest.approx((3 + 2 * 0.5) / 5)


def test_several_draws_give_the_importance_weighted_bound():
    """-ln mean p(x, z) / q(z | x), written out in float64."""
    nll, kl, constant = torch.randn(3, 7), torch.randn(3, 7), torch.randn(3, 1)
    named = weights(nll=1, kl=BETA, commitment=0.5)
    terms = {"nll": nll, "kl": kl, "commitment": constant}
    loss = image_loss(output_of(terms), ObjectiveConfig.model_construct(weights=named), 4)
    expected = -(-(nll + 2 * kl + 0.5 * constant).double()).exp().mean(1).log()
    torch.testing.assert_close(loss, expected.float())


def test_the_bound_of_one_draw_is_the_sum_itself():
    x = torch.randn(5, 1)
    assert torch.equal(importance_bound(x), x[:, 0])


def test_the_bound_stands_large_numbers():
    bound = importance_bound(torch.tensor([[3000.0, 3001.0]]))
    assert bound.item() == pytest.approx(3000 + math.log(2) - math.log(1 + math.exp(-1)), abs=1e-3)


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_weight_of_zero_switches_a_term_off_even_where_it_is_infinite(broken):
    on = torch.tensor([[2.0]], requires_grad=True)
    off = torch.tensor([[1.0]], requires_grad=True)
    loss = loss_of({"nll": on, "kl": off * broken}, weights(nll=1, kl=BETA))
    loss.backward()
    assert loss == 2 and on.grad == 1 and off.grad is None
    assert loss_of({"nll": on}, weights(nll=1, entropy=0), batch_terms={"entropy": (off * broken).sum()}) == 2


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"nll": -1}, "the weight of nll falls to -1"),
        ({"nll": 1, "kl": {"kind": "cosine", "start": 1, "end": -0.5, "steps": 3}}, "the weight of kl falls to -0.5"),
        ({"nll": 0, "kl": BETA}, "every weight is 0 at some step"),
        ({}, "at least 1"),
    ],
)
def test_weights_that_teach_nothing_or_the_opposite_are_refused(named, message):
    with pytest.raises(ValidationError, match=message):
        objective_of(named)


@pytest.mark.parametrize("repeat", ["area", "batch"])
def test_a_larger_image_or_batch_does_not_rescale_beta(repeat):
    """The same content twice as wide, or twice as often: nll and kl keep their balance and the loss its value."""
    likelihood = build_likelihood(NormalConfig(scale=0.2), 1)
    x, params = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    mean, log_variance = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)

    def parts(axis: int | None) -> list[float]:
        twice = (lambda t: t) if axis is None else (lambda t: torch.cat([t, t], axis))
        m, v = twice(mean), twice(log_variance)
        kl = ((m.square() + v.exp() - 1 - v) / 2).flatten(1).sum(1)
        terms = {"nll": likelihood.nll(twice(params), twice(x))[:, None], "kl": kl[:, None]}
        dims = twice(x)[0].numel()
        return [loss_of(terms, weights(nll=a, kl=b), 0, dims).item() for a, b in [(1, 0), (0, 1), (1, 3)]]

    assert parts({"area": 3, "batch": 0}[repeat]) == pytest.approx(parts(None), rel=1e-5)


@pytest.mark.parametrize("size", [8, 16])
def test_beta_weighs_one_nat_of_kl_like_one_nat_of_nll_at_every_size(size):
    phase = AutoencoderPhase(vae(size), objective_of({"nll": 1, "kl": 2}))
    loss, metrics = phase.eval()({"image": torch.rand(3, 1, size, size)}, 0)
    assert loss.item() == pytest.approx((metrics["nll"] + 2 * metrics["kl"]).item() / size**2, rel=1e-5)


@pytest.mark.parametrize("named", [{"nll": 1}, {"nll": 1, "kl": 1, "commitment": 1}, {"nll": 1, "kll": 1}])
def test_weights_and_terms_must_name_each_other(named):
    with pytest.raises(ValueError, match=r"\['kl', 'nll'\]") as caught:
        AutoencoderPhase(vae(), objective_of(named))
    assert str(sorted(named)) in str(caught.value)
    with pytest.raises(ValueError, match="every term needs a weight"):
        loss_of({"nll": torch.ones(1, 1), "kl": torch.ones(1, 1)}, weights(**named))


def _gradients(estimator: str, draws: int, n: int, beta: float = 1) -> torch.Tensor:
    """(3, n): independent estimates of the gradients of a, b and c: x = c z + noise, q(z | x) = N(a x, exp(b))."""
    objective = ObjectiveConfig.model_validate(
        {"weights": {"nll": 1, "kl": beta}, "draws": draws, "gradient_estimator": estimator}
    )
    parameters = [torch.full((n,), value, requires_grad=True) for value in (0.3, -0.5, 0.7)]
    a, b, c = (parameter.view(n, 1, 1, 1) for parameter in parameters)
    x = 1.5
    posterior: Any = DiagonalGaussian(a * x, b)
    z = posterior.sample(draws, torch.Generator().manual_seed(0))
    density = posterior.detach() if estimator == "doubly_reparameterized" else posterior
    nll = 0.5 * (x - c[:, None] * z).square().flatten(1)
    terms = {"nll": nll, "kl": density.log_prob(z) - StandardNormal((1, 1, 1)).log_prob(z)}
    out = AutoencoderOutput(BottleneckOutput(posterior.mean), z, z.flatten(0, 1), terms, {})
    return torch.stack(torch.autograd.grad(n * combine(out, objective, 0), parameters))


@pytest.mark.parametrize("beta", [1, 0.3])
@pytest.mark.parametrize("draws", [1, 8])
def test_the_doubly_reparameterized_gradient_has_the_same_mean_and_less_variance(draws, beta):
    n = 20_000
    plain, doubly = (_gradients(kind, draws, n, beta) for kind in ("reparameterized", "doubly_reparameterized"))
    error = 5 * ((plain.var(1) + doubly.var(1)) / n).sqrt()
    assert ((plain.mean(1) - doubly.mean(1)).abs() < error).all()
    assert beta != 1 or (doubly.var(1)[:2] < plain.var(1)[:2]).all()
    torch.testing.assert_close(doubly[2], plain[2])  # the decoder's gradient is the same


def guarded(guard: dict, **changes) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 1}, "kl_guard": guard} | changes)


@pytest.mark.parametrize("changes", [{"draws": 2}, {"gradient_estimator": "doubly_reparameterized"}])
def test_a_guard_needs_a_kl_in_closed_form(changes):
    with pytest.raises(ValidationError, match="kl_guard needs the KL in closed form"):
        guarded({"kind": "capacity", "capacity": 3}, **changes)


@pytest.mark.parametrize("per", ["element", "channel"])
def test_a_full_covariance_has_free_bits_of_the_whole_level_only(per):
    config = vae().config.model_dump() | {"bottleneck": {"kind": "full_gaussian", "dim": 2}}
    model = Autoencoder(AutoencoderConfig.model_validate(config))
    with pytest.raises(ValueError, match=f"kl_guard.per: found {per}"):
        AutoencoderPhase(model, guarded({"kind": "free_bits", "nats": 1, "per": per}))
    for guard in ({"kind": "free_bits", "nats": 1, "per": "level"}, {"kind": "capacity", "capacity": 3}):
        AutoencoderPhase(model, guarded(guard))


@pytest.mark.parametrize("top", [1, 2])
@pytest.mark.parametrize(
    "guard", [{"kind": "free_bits", "nats": 0.7, "per": "level"}, {"kind": "capacity", "capacity": 3}]
)
def test_a_top_level_whose_kl_is_sampled_has_no_guard(guard, top):
    """What is sampled may be negative; of a single number it looks like a KL in closed form."""
    config = vae().config.model_dump() | {"bottleneck": {"kind": "ladder", "dims": [top, 2], "width": 3}}
    config["backbone"] = {"kind": "mlp", "widths": [4]}
    model = Autoencoder(AutoencoderConfig.model_validate(config))
    AutoencoderPhase(model, guarded(guard))
    config["latent_prior"] = {"kind": "vamp", "pseudo_inputs": 6}
    model = Autoencoder(AutoencoderConfig.model_validate(config))
    with pytest.raises(ValueError, match="kl_guard: the KL has no closed form"):
        AutoencoderPhase(model, guarded(guard))


LEARNED = {kind: prior for kind, prior in examples(LatentPriorConfig).items() if kind != "standard_normal"}


@pytest.mark.parametrize("latent_prior", LEARNED.values(), ids=LEARNED)
def test_a_prior_that_nothing_would_train_is_refused(latent_prior):
    config = vae().config.model_dump() | {"backbone": {"kind": "mlp", "widths": [4]}} | of_latent_prior(latent_prior)
    model = Autoencoder(AutoencoderConfig.model_validate(config))
    phase_of(model, nll=1, kl={"kind": "linear", "start": 0, "end": 1, "steps": 9})
    with pytest.raises(ValueError, match=r"weights\.kl: found 0 at every step, but the latent prior"):
        phase_of(model, nll=1, kl=0)


def test_the_priors_below_the_top_of_a_hierarchy_learn_from_the_kl_too():
    config = vae().config.model_dump() | {"bottleneck": {"kind": "ladder", "dims": [2, 2], "width": 3}}
    model = Autoencoder(AutoencoderConfig.model_validate(config | {"backbone": {"kind": "mlp", "widths": [4]}}))
    phase_of(model, nll=1, kl=1)
    with pytest.raises(ValueError, match=r"the latent prior, standard_normal above 1 levels, learns"):
        phase_of(model, nll=1, kl=0)


def test_a_guard_of_a_kl_that_does_not_count_is_refused():
    with pytest.raises(ValueError, match=r"kl_guard: found one where weights\.kl is 0"):
        AutoencoderPhase(vae(), guarded({"kind": "capacity", "capacity": 3}, weights={"nll": 1, "kl": 0}))


def test_a_guard_takes_the_place_of_the_kl_in_the_loss():
    model, batch = vae(), {"image": torch.rand(3, 1, 8, 8)}
    torch.manual_seed(0)
    plain, metrics = phase_of(model, nll=1, kl=0)(batch, 0)
    torch.manual_seed(0)
    loss, same = AutoencoderPhase(model, guarded({"kind": "free_bits", "nats": 1000, "per": "level"}))(batch, 0)
    assert loss.item() == pytest.approx(plain.item() + 1000 / 64)
    assert same["kl"] == metrics["kl"]  # what is reported stays the KL


@pytest.mark.parametrize(
    ("name", "value"), [("draws", 2), ("gradient_estimator", "doubly_reparameterized"), ("kl_guard", {"nats": 1})]
)
def test_options_of_random_latents_are_refused_elsewhere(name, value):
    if isinstance(value, dict):
        value = {"kind": "free_bits", **value}
    objective = ObjectiveConfig.model_validate({"weights": {"nll": 1, "commitment": 1}, name: value})
    with pytest.raises(ValueError, match=f"{name}: found .*, expected .*: the latent of a vq model is not random"):
        AutoencoderPhase(vq(), objective)


def test_building_a_phase_leaves_the_model_as_it_was():
    model = vq()
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    AutoencoderPhase(model, objective_of({"nll": 1, "commitment": 1}))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and model.training


def test_metrics_are_detached_scalars_by_name():
    phase = AutoencoderPhase(vq(), objective_of({"nll": 1, "commitment": 0.25}))
    batch = {"image": torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)}
    loss, metrics = phase(batch, 0)
    assert set(metrics) == {"nll", "commitment", "loss", "perplexity_batch", "nonfinite_vectors"}
    assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())
    assert {value.shape for value in metrics.values()} == {()}


def test_the_phase_names_all_parameters_of_its_model():
    phase = phase_of(vae(), nll=1, kl=1)
    named = phase.trained_parameters()
    assert named.keys() == dict(phase.model.named_parameters()).keys() and len(named) > 0
    assert all(named[name] is parameter for name, parameter in phase.model.named_parameters())


@pytest.mark.parametrize(("step", "restarts"), [(7, False), (10, True)])
def test_the_phase_hands_its_step_to_the_codebook(step, restarts):
    bottleneck = {"kind": "vq", "num_codes": 8, "dim": 4, "dead_code_threshold": 1e6, "kmeans_init": False}
    model: Any = Autoencoder(AutoencoderConfig.model_validate(vae().config.model_dump() | {"bottleneck": bottleneck}))
    phase, codebook = phase_of(model, nll=1, commitment=1), model.bottleneck.codebooks[0]
    phase({"image": torch.rand(4, 1, 8, 8)}, step)
    before = codebook.ema_count.clone()
    phase.after_step(step)
    assert not torch.equal(before, codebook.ema_count) and codebook.ema_count.eq(1e6).any() == restarts


def test_a_batch_in_parts_has_the_loss_gradient_and_codebook_of_the_whole():
    batch = {"image": torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)}
    results = []
    for count in (1, 4):
        model = vq()
        phase = phase_of(model, nll=1, commitment=0.25)
        phase(batch, 0)
        phase.after_step(0)  # k-means sees the whole batch
        total = torch.zeros(())
        for part in batch["image"].chunk(count):
            loss, _ = phase({"image": part}, 1)
            (loss / count).backward()
            total += loss.detach() / count
        phase.after_step(1)
        gradients = {name: parameter.grad for name, parameter in phase.trained_parameters().items()}
        results.append((total, gradients, dict(model.bottleneck.state_dict())))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_several_draws_of_a_discrete_model_are_refused():
    with pytest.raises(ValueError, match="the latent of a vq model is not random"):
        phase_of(vq(), draws=5, nll=1, commitment=1)


def test_the_loss_is_the_negative_elbo_of_a_vae():
    model = vae()
    phase, x = phase_of(model, nll=1, kl=1), torch.rand(5, 1, 8, 8)
    torch.manual_seed(3)
    loss, _ = phase({"image": x}, 0)
    torch.manual_seed(3)
    posterior = model.encode(x).posterior
    p = model.decode(posterior.sample(1)[:, 0])
    normal = torch.distributions.Normal(posterior.mean, (posterior.log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    nll = -(x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2, 3))
    assert loss.item() == pytest.approx((nll + kl).mean().item() / 64, rel=1e-4)


def test_another_phase_may_hold_the_same_model_and_see_the_same_batch():
    class Watcher(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.head = model, nn.Linear(64, 1)

        def forward(self, batch, step):
            return self.head(self.model.reconstruct(batch["image"]).detach().flatten(1)).mean(), {}

    model = vae()
    first = AutoencoderPhase(model, objective_of({"nll": 1, "kl": 1}))
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
