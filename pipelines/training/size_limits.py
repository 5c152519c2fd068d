"""Models and batches that the machine cannot hold are refused before the data is opened."""

import os
from collections.abc import Callable

from pipelines.base.memory_limits import check_memory, check_model_size
from pipelines.training.config import TrainingConfig


def check_sizes(
    training: TrainingConfig, build: Callable[[], object], bytes_per_example: int, examples: str = "examples"
) -> None:
    """`build` makes the model; an example of a batch takes at least `bytes_per_example` on one process. `examples` is
    what a message calls them.

    Raises:
        UserError: one of the two is larger than the memory of this machine.
    """
    count = examples_at_once(training)
    check_memory(count * bytes_per_example, f"training.batch_size: {count:,} {examples} at once")
    check_model_size(build, "model: training it")


def examples_at_once(training: TrainingConfig) -> int:
    """Of a batch, in one part of a process's share."""
    parts = training.gradient_accumulation_steps * int(os.environ.get("WORLD_SIZE", "1"))
    return -(-training.batch_size // parts)
