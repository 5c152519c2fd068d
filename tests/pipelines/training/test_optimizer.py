import pytest
import torch
from torch import nn

from pipelines.training.optimizer import OptimizerConfig, WeightAverage, build_optimizer, learning_rate
from tests.pipelines.training.toy import Network
from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase, ObjectiveConfig


def test_learning_rate_is_a_pure_function_with_the_named_ends():
    config = OptimizerConfig(learning_rate=1.0, warmup=10, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[109] == pytest.approx(0.1, abs=1e-3)
    assert learning_rate(config, 500, 110) == pytest.approx(0.1)


def test_the_rate_may_reach_its_end_before_the_run_does():
    short, long = (
        OptimizerConfig(learning_rate=1.0, warmup=10),
        OptimizerConfig(learning_rate=1.0, warmup=10, decay_steps=60),
    )
    for step in range(60):
        assert learning_rate(long, step, 110) == learning_rate(short, step, 60)
    assert {learning_rate(long, step, 110) for step in range(60, 110)} == {0.05}


def test_only_matrices_decay():
    parameters = {"matrix": nn.Parameter(torch.ones(2, 2)), "bias": nn.Parameter(torch.ones(2))}
    optimizer = build_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), parameters)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameters["matrix"].detach(), torch.full((2, 2), 0.95))
    torch.testing.assert_close(parameters["bias"].detach(), torch.ones(2))


@pytest.mark.parametrize(
    ("kind", "some_decay"), [("standard_normal", False), ("mixture", False), ("vamp", False), ("flow", True)]
)
def test_of_a_latent_prior_only_the_weights_of_a_network_decay(kind, some_decay):
    config = {
        "image_size": 4,
        "channels": 1,
        "backbone": {"kind": "mlp", "widths": [4]},
        "bottleneck": {"kind": "gaussian", "dim": 3},
        "latent_prior": {"kind": kind},
        "likelihood": {"kind": "bernoulli"},
    }
    model = Autoencoder(AutoencoderConfig.model_validate(config))
    phase = AutoencoderPhase(model, ObjectiveConfig.model_validate({"weights": {"nll": 1, "kl": 1}}))
    decaying = build_optimizer(OptimizerConfig(weight_decay=0.5), phase.trained_parameters()).param_groups[0]["params"]
    found = {name for name, p in model.named_parameters() if any(p is other for other in decaying)}
    of_prior = {name for name in found if name.startswith("latent_prior.")}
    assert found - of_prior == {
        name for name, p in model.named_parameters() if p.ndim >= 2 and not name.startswith("latent_prior.")
    }
    assert bool(of_prior) == some_decay and all(name.endswith(".weight") for name in of_prior)


def test_weight_average_equals_its_recurrence_and_copies_buffers():
    model = Network()
    average = WeightAverage(model, decay=0.5)
    expected = None
    for update in range(1, 30):
        with torch.no_grad():
            model.unused.add_(1.0)
            model.seen += 1
        average.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        weight = model.unused.detach().clone()
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    torch.testing.assert_close(average.model.get_parameter("unused").detach(), expected)
    assert average.model.get_buffer("seen") == model.seen


def test_a_weight_average_does_not_copy_what_is_not_saved():
    """A codebook collects sums as large as itself during a step, which no average needs."""
    model = Network()
    model.register_buffer("collected", torch.zeros(3), persistent=False)
    average = WeightAverage(model, decay=0.5)
    model.get_buffer("collected").fill_(1.0)
    average.update(model)
    assert average.model.get_buffer("collected").eq(0).all()


def test_the_average_is_a_model_of_its_own_in_evaluation_mode():
    model = Network()
    average = WeightAverage(model, decay=0.5).model
    assert not average.training and not any(p.requires_grad for p in average.parameters())
    assert model.training and all(p.requires_grad for p in model.parameters())
