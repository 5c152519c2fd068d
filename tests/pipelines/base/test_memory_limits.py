"""What no machine can hold is refused by arithmetic, not by trying."""

import pytest
import torch
from torch import nn

from pipelines.base.errors import UserError
from pipelines.base.memory_limits import check_memory, check_model_size, machine_memory


def test_the_machine_has_some_memory_and_no_more_may_be_wanted():
    check_memory(machine_memory(), "everything")
    with pytest.raises(UserError, match="a batch would take"):
        check_memory(machine_memory() + 1, "a batch")


@pytest.mark.parametrize("width", [10**6, 2**40, 2**62])
def test_a_model_that_is_too_large_is_refused(width):
    with pytest.raises(UserError, match="the model"):
        check_model_size(lambda: nn.Linear(width, width), "the model")


def test_buffers_are_counted_once_and_not_as_weights_are():
    def build(size):
        module = nn.Linear(3, 3)
        module.register_buffer("mask", torch.empty(size, dtype=torch.bool))
        return module

    check_model_size(lambda: build(machine_memory() // 2), "the model")
    with pytest.raises(UserError, match="the model"):
        check_model_size(lambda: build(2 * machine_memory()), "the model")


def test_a_small_model_is_built_without_memory_and_without_random_numbers():
    before = torch.get_rng_state()
    check_model_size(lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout()), "the model")
    assert torch.equal(torch.get_rng_state(), before)


def test_options_that_a_module_refuses_are_a_message():
    def build():
        raise ValueError("a flow of too many weights")

    with pytest.raises(UserError, match="the model: a flow of too many weights"):
        check_model_size(build, "the model")


def test_a_defect_of_the_model_is_not_hidden():
    def build():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        check_model_size(build, "the model")
