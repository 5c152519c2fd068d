"""Sizes that this machine cannot hold are refused before anything is allocated, or a process is killed for it."""

import os
from collections.abc import Callable
from pathlib import Path

from pipelines.base.errors import UserError
from pipelines.base.machine_errors import machine_error

TRAINING_COPIES = 4  # weights, gradients and the two moments of Adam
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or less where a container has a limit."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in CGROUP_LIMITS:
        try:
            found = min(found, int(Path(path).read_text()))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return found


def check_memory(wanted: int, what: str) -> None:
    """Raise UserError where `wanted` bytes for `what` are more than the machine has."""
    if wanted > (limit := machine_memory()):
        raise UserError(
            f"{what} would take {_gigabytes(wanted)} of memory, and this machine has {_gigabytes(limit)}; expected "
            "smaller numbers"
        )


def check_model_size(build: Callable[[], object], what: str, copies: int = TRAINING_COPIES) -> None:
    """Build a module without memory and refuse it where `copies` of its weights, and its buffers, are more than the
    machine holds.

    Raises:
        UserError: too large, a size that no tensor can have, or options that the module refuses.
    """
    import torch
    from torch import nn

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # the weights of the real one stay the same
            module = build()
    except (RuntimeError, OverflowError, MemoryError, RecursionError) as error:
        if (message := machine_error(error)) is None:
            raise
        raise UserError(f"{what}: {message}") from error
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error
    assert isinstance(module, nn.Module)
    weights = sum(parameter.nbytes for parameter in module.parameters())
    check_memory(copies * weights + sum(buffer.nbytes for buffer in module.buffers()), what)


def _gigabytes(number: int) -> str:
    return f"{number / 2**30:,.1f} GiB" if number < 2**60 else f"{number / 2**60:,.1f} EiB"
