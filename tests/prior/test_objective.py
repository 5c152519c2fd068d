import math

import pytest
import torch

from prior import PriorPhase, sequence_bits, sequence_logprobs


def test_the_probabilities_of_all_sequences_sum_to_one(make_prior):
    prior = make_prior(grid=(2, 2, 1), num_codes=3)
    sequences = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2, 1)
    probabilities = sequence_logprobs(prior, sequences, torch.ones(81, dtype=torch.long)).sum(-1).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)


def test_the_loss_is_the_mean_of_the_bits_of_its_images(make_prior):
    prior = make_prior(grid=(2, 3, 2))
    batch = {"codes": torch.randint(0, 11, (5, 2, 3, 2)), "label": torch.arange(5) % 3}
    loss, metrics = PriorPhase(prior).eval()(batch, 0)
    bits = sequence_bits(prior, batch["codes"], batch["label"])
    assert metrics["bits_per_token"].item() == pytest.approx(bits.mean().item() / 12, rel=1e-5)
    assert loss.item() == pytest.approx(metrics["bits_per_token"].item() * math.log(2), rel=1e-5)


def test_a_prior_without_knowledge_needs_log2_k_bits(make_prior):
    prior = make_prior(num_codes=16, sharpen=0.0)
    bits = sequence_bits(prior, torch.randint(0, 16, (2, 3, 4, 1)))
    assert bits.tolist() == pytest.approx([12 * 4.0] * 2)


def test_bits_do_not_depend_on_the_training_mode(make_prior):
    prior = make_prior(condition_dropout=1.0, dropout=0.5)
    codes, labels = torch.randint(0, 11, (3, 3, 4, 1)), torch.arange(3)
    expected = sequence_bits(prior, codes, labels)
    assert torch.equal(sequence_bits(prior.train(), codes, labels), expected)


def test_it_learns_a_deterministic_pattern(make_prior):
    prior = make_prior(grid=(2, 3, 2), num_codes=5, sharpen=1.0).train()
    phase = PriorPhase(prior)
    labels = torch.arange(3).repeat(4)
    pattern = (labels[:, None] + torch.arange(12) ** 2) % 5
    batch = {"codes": pattern.view(-1, 2, 3, 2), "label": labels}
    optimizer = torch.optim.AdamW(phase.parameters(), lr=3e-3)
    for step in range(80):
        loss, _ = phase(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bits = sequence_bits(prior, batch["codes"], labels)
    assert bits.max() < 1.5  # of 12 codes; log2(5) * 12 = 27.9 at the start


def test_a_conditional_prior_asks_for_labels(make_prior):
    with pytest.raises(ValueError, match=r"'label' needs it in each batch, found \['codes'\]"):
        PriorPhase(make_prior())({"codes": torch.zeros(1, 3, 4, 1, dtype=torch.long)})


def test_an_unconditional_prior_ignores_labels(make_prior):
    phase = PriorPhase(make_prior(num_classes=None))
    codes = torch.zeros(1, 3, 4, 1, dtype=torch.long)
    assert torch.equal(phase({"codes": codes, "label": torch.tensor([7])})[0], phase({"codes": codes})[0])


def test_the_phase_trains_every_parameter_of_its_model_by_name(make_prior):
    prior = make_prior()
    phase = PriorPhase(prior)
    assert phase.model is prior
    assert phase.trained_parameters().keys() == dict(prior.named_parameters()).keys()
    assert all(phase.trained_parameters()[name] is p for name, p in prior.named_parameters())
    before = {name: value.clone() for name, value in phase.state_dict().items()}
    phase.after_step(0)
    assert all(torch.equal(value, before[name]) for name, value in phase.state_dict().items())


def test_the_phase_takes_the_condition_of_its_segment(make_prior):
    prior = make_prior(caption=5)
    batch = {"codes": torch.randint(0, 11, (2, 3, 4, 1)), "caption": torch.randint(0, 7, (2, 5))}
    bits = sequence_bits(prior, batch["codes"], batch["caption"])
    _, metrics = PriorPhase(prior).eval()(batch)
    assert metrics["bits_per_token"].item() == pytest.approx(bits.mean().item() / 12, rel=1e-5)
