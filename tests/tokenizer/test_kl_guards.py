from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tokenizer.kl_guards import Capacity, FreeBits, guarded_batch

ELEMENTS = (torch.tensor([[0.1, 0.9], [0.3, 1.5]]).view(2, 1, 1, 2), torch.tensor([[2.0, 0.2]] * 2).view(2, 2, 1, 1))


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        ("element", [0.5 + 0.9 + 2.0 + 0.5, 0.5 + 1.5 + 2.0 + 0.5]),
        ("channel", [1.0 + 2.0 + 0.5, 1.8 + 2.0 + 0.5]),
        ("level", [1.0 + 2.2, 1.8 + 2.2]),
    ],
)
def test_free_bits_by_hand(per, expected):
    guard: Any = FreeBits(nats=0.5, per=per)
    found = [guard.penalty(groups, 0).item() for groups in guard.groups(ELEMENTS)]
    assert found == pytest.approx(expected)


def test_the_allowance_of_a_batch_is_for_the_mean_over_its_images():
    """The first element has 0.1 and 0.3 nats: 0.2 on average, below an allowance of 0.25."""
    guard = FreeBits(nats=0.25)
    assert guarded_batch(guard, ELEMENTS, 0).item() == pytest.approx(0.25 + 1.2 + 2.0 + 0.25)


def test_what_is_below_the_allowance_has_no_gradient():
    level = ELEMENTS[0].clone().requires_grad_()
    guarded_batch(FreeBits(nats=0.25), (level,), 0).backward()
    assert level.grad is not None and level.grad.flatten().tolist() == [0.0, 0.5, 0.0, 0.5]


def test_capacity_pulls_from_both_sides_and_follows_its_schedule():
    guard = Capacity.model_validate({"capacity": {"kind": "linear", "start": 0, "end": 4, "steps": 4}})
    for step, expected in [(0, [3.2, 4.0]), (3, [0.2, 1.0]), (4, [0.8, 0.0])]:
        found = [guard.penalty(groups, step).item() for groups in guard.groups(ELEMENTS)]
        assert found == pytest.approx(expected, abs=1e-6)
        assert guarded_batch(guard, ELEMENTS, step).item() == pytest.approx(abs(3.6 - min(step, 4)))


@pytest.mark.parametrize("capacity", [-1, {"kind": "linear", "start": 3, "end": -0.5, "steps": 4}])
def test_a_negative_capacity_is_refused(capacity):
    with pytest.raises(ValidationError, match=r"falls to -(1|0\.5)"):
        Capacity.model_validate({"capacity": capacity})


@pytest.mark.parametrize(("per", "expected"), [("element", 4), ("channel", 3), ("level", 2)])
def test_free_bits_counts_its_allowances(per, expected):
    assert FreeBits(nats=0.5, per=per).count(ELEMENTS) == expected


@pytest.mark.parametrize("per", ["element", "channel"])
def test_elements_without_a_kl_of_their_own_are_refused(per):
    elements, shapes = (*ELEMENTS, torch.ones(2, 1, 1, 1)), ((1, 1, 2), (2, 1, 1), (1, 1, 1))
    FreeBits(nats=0.5, per=per).check_elements(elements, shapes)
    with pytest.raises(ValueError, match=f"kl_guard.per: found {per}.*expected level"):
        FreeBits(nats=0.5, per=per).check_elements(elements, (*shapes[:2], (1, 1, 2)))
