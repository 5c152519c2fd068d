"""One process or many, CPU or GPU: the accelerator, the world-size check and the random streams."""

import os
from pathlib import Path
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import gather_object

from pipelines.base.errors import UserError
from pipelines.base.process_store import Processes, wait_for_all
from pipelines.base.random_streams import seed_of
from pipelines.base.rank_failures import watch_other_processes

Precision = Literal["fp32", "bf16", "fp16"]
T = TypeVar("T")


def start(precision: Precision = "fp32", trackers: tuple[str, ...] = (), folder: Path | None = None) -> Accelerator:
    """The accelerator of this process.

    `trackers` will write into or beside `folder`, once they are started (`accelerator.init_trackers`).

    Raises:
        UserError: a launcher started several processes that would each believe to be alone, or fp16 without a GPU.
    """
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    check_precision(precision)
    mixed = "no" if precision == "fp32" else precision
    if is_initialized() and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()  # a chain of recipes may ask for one precision after another
    accelerator = Accelerator(
        mixed_precision=mixed,
        log_with=list(trackers) or None,
        project_dir=str(folder) if folder else None,
        step_scheduler_with_optimizer=False,
    )
    if accelerator.num_processes != expected:
        raise UserError(
            f"WORLD_SIZE is {expected}, but accelerate sees {accelerator.num_processes} process(es): they would "
            "overwrite each other. On CPUs: `ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m pipelines …`"
        )
    watch_other_processes(accelerator)
    # On a CPU, arithmetic with numbers below 1e-38 takes up to ten times as long, and the gradient of a mixture of many
    # narrow Gaussians is full of them. torch's worker threads inherit this when they start, at its first large sum.
    torch.set_flush_denormal(True)
    return accelerator


def check_precision(precision: Precision) -> None:
    """Raises UserError for fp16 without a GPU."""
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision: found 'fp16', which needs a GPU; expected 'fp32' or 'bf16' on a CPU")


def share_of(rows: range, processes: Processes | None) -> range:
    """The part of `rows` that belongs to this process: consecutive ones, in the order of the processes."""
    if processes is None:
        return rows
    size = -(-len(rows) // processes.num_processes)
    return rows[processes.process_index * size : (processes.process_index + 1) * size]


def gather(values: list[T], processes: Processes | None) -> list[T]:
    """The values of all processes, in their order, however long the slowest one takes: a collective has a timeout."""
    if processes is None or processes.num_processes == 1:
        return values
    wait_for_all(processes)
    return gather_object(values)


def seed_step(seed: int, step: int, rank: int, phase: int = 0) -> None:
    """Restart torch's random streams as a pure function of the arguments, so that resuming needs no saved state."""
    value = seed_of((seed, "step", step, rank, phase))
    torch.default_generator.manual_seed(value)  # torch.manual_seed asks every backend in turn, which takes longer
    if torch.accelerator.is_available():
        torch.get_device_module().manual_seed(value)
