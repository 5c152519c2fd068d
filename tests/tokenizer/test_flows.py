import copy
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from tokenizer.flows import Flow, FlowKind
from tokenizer.latent_priors.flow import FlowConfig, FlowDistribution, FlowPrior

KINDS = get_args(FlowKind)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_size = pytest.mark.parametrize("size", [1, 2, 5])


def a_flow(kind: FlowKind, size: int = 5, context: int = 3) -> Flow:
    torch.manual_seed(0)
    return Flow(kind, size, transforms=3, widths=(16, 16), context=context)


def a_batch(size: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return 2 * torch.randn(4, 6, size), torch.randn(4, 1, 3)


@every_kind
@every_size
@pytest.mark.parametrize("inverse", [False, True])
def test_the_log_determinant_is_that_of_the_jacobian(kind, size, inverse):
    flow, (x, context) = a_flow(kind, size), a_batch(size)
    _, log_determinant = flow(x, context, inverse)
    for i in range(4):
        matrix = jacobian(lambda v, i=i: flow(v, context[i, 0], inverse)[0], x[i, 2])
        torch.testing.assert_close(log_determinant[i, 2], matrix.slogdet()[1], rtol=1e-4, atol=1e-4)


@every_kind
@every_size
def test_the_inverse_undoes_the_map(kind, size):
    flow, (x, context) = a_flow(kind, size), a_batch(size)
    y, log_determinant = flow(x, context)
    back, other = flow(y, context, inverse=True)
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other, -log_determinant, rtol=1e-4, atol=1e-4)


@every_kind
def test_every_number_depends_on_the_context_and_some_on_the_others(kind):
    flow, (x, context) = a_flow(kind), a_batch()
    moved, _ = flow(x, context + 1)
    assert ((moved - flow(x, context)[0]).abs().amax((0, 1)) > 1e-3).all()
    matrix = jacobian(lambda v: flow(v, context[0, 0])[0], x[0, 0])
    assert (matrix - matrix.diag().diag()).abs().sum() > 1e-3


@every_kind
def test_weights_in_half_precision_are_computed_with_in_float32(kind):
    flow, (x, context) = a_flow(kind).bfloat16(), a_batch()
    reference = copy.deepcopy(flow).float()
    torch.testing.assert_close(flow(x, context), reference(x, context), rtol=0, atol=0)
    flow(x, context)[1].sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


@every_kind
def test_autocast_changes_nothing(kind):
    flow, (x, context) = a_flow(kind), a_batch()
    with torch.autocast("cpu", torch.bfloat16):
        found = flow(x, context)
    torch.testing.assert_close(found, flow(x, context), rtol=0, atol=0)


@every_kind
def test_the_density_of_the_flow_prior_is_zukos(kind):
    from zuko.distributions import DiagNormal, NormalizingFlow

    torch.manual_seed(0)
    prior = FlowPrior(FlowConfig(flow=kind), (3, 2, 1))
    z = 2 * torch.randn(4, 5, 3, 2, 1)
    reference = NormalizingFlow(prior.flow.bijection(), DiagNormal(torch.zeros(6), torch.ones(6)))
    torch.testing.assert_close(FlowDistribution(prior, None).log_prob(z), reference.log_prob(z.flatten(2)))


@every_kind
@pytest.mark.parametrize(("size", "points_of_axis"), [(1, 20_001), (2, 401)])
def test_the_density_of_the_flow_prior_integrates_to_one(kind, size, points_of_axis):
    torch.manual_seed(0)
    prior = FlowPrior(FlowConfig(flow=kind, transforms=2, widths=(8,)), (size, 1, 1))
    axis = torch.linspace(-12, 12, points_of_axis)
    points = torch.cartesian_prod(*[axis] * size).view(-1, 1, size, 1, 1)
    with torch.no_grad():
        total = FlowDistribution(prior, None).log_prob(points).double().exp().sum() * (axis[1] - axis[0]) ** size
    assert abs(total - 1) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_can_be_described_without_storage(kind):
    """As a stored model is, before its weights are read."""
    with torch.device("meta"):
        described = Flow(kind, 6, 2, (8,), 3)
    built = Flow(kind, 6, 2, (8,), 3)
    assert {name: t.shape for name, t in described.state_dict().items()} == {
        name: t.shape for name, t in built.state_dict().items()
    }
    assert {t.device.type for t in described.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_that_are_counted_are_no_fewer_than_there_are(kind, monkeypatch):
    monkeypatch.setattr("tokenizer.flows.MAX_WEIGHTS", 10**4)
    matrices = sum(p.numel() for p in Flow(kind, 6, 2, (16, 16), 3).parameters() if p.ndim == 2)
    monkeypatch.setattr("tokenizer.flows.MAX_WEIGHTS", matrices - 1)
    with pytest.raises(ValueError, match="expected at most"):
        Flow(kind, 6, 2, (16, 16), 3)


def test_a_flow_that_no_memory_holds_is_refused():
    with pytest.raises(ValueError, match="expected at most 67,108,864"):
        Flow("coupling", 10_000, 3, (100_000,))
