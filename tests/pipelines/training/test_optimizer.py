import pytest
import torch
from torch import nn

from pipelines.training.optimizer import OptimizerConfig, WeightAverage, build_optimizer, learning_rate
from tests.pipelines.training.toy import Network


def test_learning_rate_is_a_pure_function_with_the_named_ends():
    config = OptimizerConfig(learning_rate=1.0, warmup=10, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[109] == pytest.approx(0.1, abs=1e-3)
    assert learning_rate(config, 500, 110) == pytest.approx(0.1)


def test_only_matrices_decay():
    parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    optimizer = build_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameters[0].detach(), torch.full((2, 2), 0.95))
    torch.testing.assert_close(parameters[1].detach(), torch.ones(2))


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
