"""A full disk, missing memory and impossible sizes are messages; a defect of the program is none."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from pipelines.base.machine_errors import CAUSES, machine_error


def raised(action):
    with pytest.raises(Exception) as caught:
        action()
    return machine_error(caught.value)


@pytest.mark.parametrize("number", CAUSES)
def test_an_error_of_the_system_names_file_and_cause(number):
    assert machine_error(OSError(number, os.strerror(number), "runs/a")) == f"runs/a: {CAUSES[number]}"


def test_an_unknown_error_of_the_system_keeps_its_own_words():
    assert machine_error(OSError(errno.EIO, "Input/output error", "a", None, "b")) == "a -> b: Input/output error"
    assert machine_error(OSError("cannot identify image")) == "cannot identify image"


@pytest.mark.parametrize(
    "action",
    [
        lambda: torch.empty(2**60),
        lambda: torch.empty(2**62, 2**62),
        lambda: torch.nn.Linear(2**31, 2**31),
        lambda: torch.zeros(1).expand(2**62, 2**62).clone(),
        lambda: bytearray(2**60),
        lambda: torch.nn.Linear(2, int(1e300)),
        lambda: torch.Generator().manual_seed(10**23),
        lambda: torch.randperm(2**55),
    ],
    ids=range(8),
)
def test_a_size_that_no_machine_can_hold_is_a_message(action):
    assert raised(action)


def test_memory_of_a_gpu_and_depth_are_named():
    assert "out of memory" in (machine_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")) or "")
    assert "nested" in (machine_error(RecursionError("maximum recursion depth exceeded")) or "")


def test_a_full_disk_under_torch_and_safetensors():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    assert raised(lambda: torch.save({"a": torch.zeros(10_000)}, "/dev/full"))
    assert raised(lambda: save_file({"a": torch.zeros(1)}, "/proc/nowhere/a"))


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("shapes differ"), KeyError("a"), TypeError("b")])
def test_a_defect_stays_a_defect(error):
    assert machine_error(error) is None
