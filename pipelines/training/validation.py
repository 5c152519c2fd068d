"""Means over held-out rows, computed by all processes together."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.training.collective import Collective
from pipelines.training.config import TrainingConfig


def block_size(config: TrainingConfig) -> int:
    """Rows that a process evaluates at once: no more than it trains on at once, and the same for any number of them."""
    return min(64, config.batch_size // config.gradient_accumulation_steps)


def own_rows(rows: int, block: int, collective: Collective) -> list[int]:
    """The rows of this process: blocks of `block` consecutive rows go to the processes in turn.

    A block is computed whole by one process. Which one it is changes no bit of its figures.
    """
    return [row for row in range(rows) if row // block % collective.world == collective.rank]


def mean_figures(blocks: Iterable[Mapping[str, Tensor]], collective: Collective) -> dict[str, float]:
    """The means over the rows of all processes of figures that are known row by row: {name: (b,)} for each block.

    Sums over blocks are exact, so neither their order nor the number of processes changes the result.

    Raises:
        UserError: there is not a single row.
    """
    sums: list[dict[str, float]] = []
    with torch.no_grad():
        for figures in blocks:
            values = torch.stack([value.float() for value in figures.values()]).double()
            totals = [*values.sum(1).tolist(), float(values.shape[1])]
            sums.append(dict(zip([*figures, ""], totals, strict=True)))
    everyone = [found for part in collective.gather(sums) for found in part]
    if not everyone:
        raise UserError("data: none of the validation images can be read")
    names = [name for name in everyone[0] if name]
    count = math.fsum(found[""] for found in everyone)
    return {name: math.fsum(found[name] for found in everyone) / count for name in names}
