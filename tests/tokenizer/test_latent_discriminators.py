"""A discriminator of the latents: what it tells apart, what the autoencoder learns from it, and its own phase."""

import math
from typing import Any

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from tests.tokenizer.members import examples
from tests.tokenizer.test_objective import objective_of, vae, vq
from tests.tokenizer.test_regularizers import deterministic
from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase
from tokenizer.regularizers import (
    LATENTS,
    OTHERS,
    LatentDiscriminator,
    LatentDiscriminatorConfig,
    LatentDiscriminatorPhase,
)
from tokenizer.regularizers.adversarial import AdversarialDiscriminator
from tokenizer.regularizers.factor import FactorDiscriminator
from tokenizer.standard_normal import StandardNormal

KINDS: dict[str, Any] = examples(LatentDiscriminatorConfig)
PRIOR = StandardNormal((2, 1, 1))


def phases(config: Any, weight: float = 1, model: Autoencoder | None = None) -> Any:
    model = model or vae()
    weights = dict.fromkeys(model.term_names(), 1) | {config.term: weight}
    objective = objective_of(weights).model_copy(update={"discriminator": config})
    first = AutoencoderPhase(model, objective)
    assert first.discriminator is not None
    return first, LatentDiscriminatorPhase(first.discriminator)


def batch_of(size: int = 4) -> dict[str, torch.Tensor]:
    return {"image": torch.rand(size, 1, 8, 8)}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("build", [vae, deterministic])
def test_each_phase_gives_gradients_to_what_it_trains_and_to_nothing_else(name, build):
    first, second = phases(KINDS[name], model=build())
    batch = batch_of()
    assert second.model is first.discriminator and first.model is not second.model
    own, other = first.trained_parameters().values(), second.trained_parameters().values()
    first(batch, 0)[0].backward()
    assert all(parameter.grad is not None for parameter in own)
    assert all(parameter.grad is None for parameter in other)
    for parameter in own:
        parameter.grad = None
    second(batch, 0)[0].backward()
    assert all(parameter.grad is None for parameter in own)
    assert all(parameter.grad is not None for parameter in other)


@pytest.mark.parametrize("name", KINDS)
def test_the_term_pulls_the_encoder_and_not_the_decoder(name):
    first, _ = phases(KINDS[name])
    out = first.model(batch_of()["image"])
    KINDS[name].loss(first.discriminator.frozen(out.z.flatten(0, 1).flatten(1))).backward()
    assert all(parameter.grad is not None for parameter in first.model.encoder.parameters())
    assert all(parameter.grad is None for parameter in first.model.decoder.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_the_term_is_weighted_into_the_loss(name):
    results, batch = [], batch_of()
    for weight in (0, 3):
        first, _ = phases(KINDS[name], weight)
        torch.manual_seed(0)
        results.append(first(dict(batch), 0))
    (without, _), (loss, metrics) = results
    assert loss.item() == pytest.approx((without + 3 * metrics[KINDS[name].term] / 64).item(), rel=1e-5)
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("name", KINDS)
def test_the_batch_gets_detached_latents_and_as_many_others(name):
    first, _ = phases(KINDS[name])
    batch = batch_of()
    first(batch, 0)
    assert batch[LATENTS].shape == batch[OTHERS].shape == (4, 2 * 4 * 4)
    assert not batch[LATENTS].requires_grad and not batch[OTHERS].requires_grad


def test_without_a_discriminator_the_batch_stays_as_it_is():
    batch = batch_of()
    AutoencoderPhase(vae(), objective_of({"nll": 1, "kl": 1}))(batch, 0)
    assert set(batch) == {"image"}


def test_the_autoencoder_alone_is_the_model_of_the_first_phase():
    first, _ = phases(FactorDiscriminator())
    assert not any("discriminator" in name for name in first.model.state_dict())


@pytest.mark.parametrize("name", KINDS)
def test_a_discrete_latent_is_refused(name):
    with pytest.raises(ValueError, match=f"found {KINDS[name].term}, but the latent of a vq model is discrete"):
        phases(KINDS[name], model=vq())


def test_the_papers_network_is_a_configuration():
    """Six layers of 1000 with leaky ReLU (arXiv 1802.05983, appendix A); one logit is the difference of its two."""
    network = LatentDiscriminator(FactorDiscriminator(widths=(1000,) * 6), 10)
    assert [layer.out_features for layer in network.layers if isinstance(layer, torch.nn.Linear)] == [1000] * 6 + [1]
    assert {layer.negative_slope for layer in network.layers if isinstance(layer, torch.nn.LeakyReLU)} == {0.2}


# FactorVAE

CORRELATED = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))


def test_permuting_keeps_the_marginals_and_breaks_the_dependence():
    torch.manual_seed(0)
    z = CORRELATED.sample((2000,))
    others = FactorDiscriminator().others(z, PRIOR)
    assert torch.equal(z.sort(0).values, others.sort(0).values)
    assert torch.corrcoef(z.T)[0, 1] > 0.75 and abs(torch.corrcoef(others.T)[0, 1]) < 0.1
    assert not torch.equal(z[:, 0], others[:, 0])  # every element is permuted, none stays with its row


def log_ratio(z: torch.Tensor) -> torch.Tensor:
    return CORRELATED.log_prob(z) - Normal(0.0, 1.0).log_prob(z).sum(1)


def test_the_optimal_discriminator_gives_the_total_correlation():
    """-ln(1 - rho²) / 2 in closed form."""
    torch.manual_seed(0)
    found = FactorDiscriminator().loss(log_ratio(CORRELATED.sample((200_000,))))
    assert found.item() == pytest.approx(-math.log(1 - 0.8**2) / 2, abs=0.01)


def test_a_trained_discriminator_approaches_the_log_ratio():
    torch.manual_seed(0)
    config = FactorDiscriminator(widths=(64, 64))
    phase = LatentDiscriminatorPhase(LatentDiscriminator(config, 2))
    optimizer = torch.optim.Adam(phase.model.parameters(), 5e-3)
    for step in range(300):
        z = CORRELATED.sample((512,))
        loss, metrics = phase({LATENTS: z, OTHERS: config.others(z, PRIOR)}, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = CORRELATED.sample((5000,))
    assert config.loss(phase.model(z)).item() == pytest.approx(-math.log(1 - 0.8**2) / 2, abs=0.1)
    assert torch.corrcoef(torch.stack([phase.model(z), log_ratio(z)]))[0, 1] > 0.95
    assert 0.6 < metrics["accuracy"] < 0.9


# Adversarial autoencoder


def test_the_others_are_draws_of_the_prior():
    torch.manual_seed(0)
    z = torch.full((3, 2), 7.0)
    others = AdversarialDiscriminator().others(z, PRIOR)
    torch.manual_seed(0)
    assert torch.equal(others, PRIOR.sample(3).flatten(1))


def test_the_encoder_is_paid_for_what_passes_as_a_draw_of_the_prior():
    """-ln (1 - sigmoid(logit)), whose gradient does not vanish where the discriminator is sure."""
    logits = torch.tensor([-2.0, 0.0, 30.0], requires_grad=True)
    loss = AdversarialDiscriminator().loss(logits)
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(x)) for x in (-2, 0, 30)) / 3, rel=1e-5)
    loss.backward()
    assert logits.grad is not None and logits.grad[2].item() == pytest.approx(1 / 3)


def test_latents_are_moved_towards_the_prior():
    """Free latents, far off, against a discriminator in alternation: they end where the prior is."""
    torch.manual_seed(0)
    config = AdversarialDiscriminator(widths=(32,))
    phase = LatentDiscriminatorPhase(LatentDiscriminator(config, 2))
    z = torch.nn.Parameter(torch.randn(256, 2) + 3)
    encoder, critic = torch.optim.Adam([z], 0.02), torch.optim.Adam(phase.model.parameters(), 0.01)
    for step in range(400):
        encoder.zero_grad()
        config.loss(phase.model.frozen(z)).backward()
        encoder.step()
        critic.zero_grad()
        phase({LATENTS: z.detach(), OTHERS: config.others(z, PRIOR)}, step)[0].backward()
        critic.step()
    assert z.mean(0).abs().max() < 0.7


# The second phase


def test_the_loss_is_the_cross_entropy_of_both_kinds():
    second = phases(FactorDiscriminator())[1]
    batch = {LATENTS: torch.randn(6, 32), OTHERS: torch.randn(6, 32)}
    loss, metrics = second(batch, 0)
    logits = torch.cat([second.model(batch[LATENTS]), second.model(batch[OTHERS])])
    truth = torch.cat([torch.ones(6), torch.zeros(6)])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(loss, expected)
    assert metrics["accuracy"].item() == pytest.approx(((logits > 0) == truth.bool()).float().mean().item())


def test_chance_costs_ln_2():
    second = phases(FactorDiscriminator())[1]
    with torch.no_grad():
        for parameter in second.model.layers[-1].parameters():
            parameter.zero_()
    loss, _ = second({LATENTS: torch.randn(6, 32), OTHERS: torch.randn(6, 32)}, 0)
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", KINDS)
def test_there_are_as_many_others_as_latents_also_of_a_conditional_prior_and_several_draws(name):
    """Draws of a label's prior stand beside the latents of that label."""
    config = vae().config.model_dump() | {
        "backbone": {"kind": "mlp", "widths": [4]},
        "condition": {"kind": "film", "num_classes": 3, "dim": 4},
        "latent_prior": {"kind": "flow", "conditional": True},
    }
    model = Autoencoder(AutoencoderConfig.model_validate(config))
    weights = dict.fromkeys(model.term_names(), 1) | {KINDS[name].term: 1}
    objective = objective_of(weights).model_copy(update={"discriminator": KINDS[name], "draws": 2})
    batch: dict[str, Any] = batch_of(6) | {"label": torch.tensor([0, 1, 2, 0, 1, 2])}
    AutoencoderPhase(model, objective)(batch, 0)[0].backward()
    assert batch[LATENTS].shape == batch[OTHERS].shape == (12, 2)


def test_the_draws_of_a_conditional_prior_are_those_of_their_label():
    config = vae().config.model_dump() | {
        "backbone": {"kind": "mlp", "widths": [4]},
        "condition": {"kind": "film", "num_classes": 2, "dim": 4},
        "latent_prior": {"kind": "flow", "conditional": True},
    }
    model = Autoencoder(AutoencoderConfig.model_validate(config))
    labels = torch.tensor([0, 1])
    both = model.latent_distribution(labels)
    each = model.latent_distribution(labels.repeat_interleave(3))
    streams = [[torch.Generator().manual_seed(i) for i in range(6)] for _ in range(2)]
    with torch.no_grad():
        torch.testing.assert_close(both.sample(6, streams[0]), each.sample(6, streams[1]))


def test_one_image_is_too_few_to_permute():
    with pytest.raises(ValueError, match="found 1 image at once, expected at least 2"):
        FactorDiscriminator().check_batch(1)
    AdversarialDiscriminator().check_batch(1)
