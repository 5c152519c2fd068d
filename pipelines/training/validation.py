"""Means over held-out rows, computed by all processes together."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.data.dataset import ImageDataset, PixelBatch, Unreadable
from pipelines.training.collective import Collective
from pipelines.training.config import TrainingConfig


def block_size(config: TrainingConfig) -> int:
    """Rows that a process evaluates at once: no more than it trains on at once, and the same for any number of them."""
    return min(128, config.batch_size // config.gradient_accumulation_steps)


def own_rows(rows: int, block: int, collective: Collective) -> list[int]:
    """The rows of this process: blocks of `block` consecutive rows go to the processes in turn.

    A block is computed whole by one process. Which one it is changes no bit of its figures.
    """
    return [row for row in range(rows) if row // block % collective.world == collective.rank]


def readable_images(images: ImageDataset, rows: int, count: int) -> PixelBatch:
    """The first `count` images that can be read among the first `rows`; fewer where there are not so many.

    Raises:
        UserError: none can be read. Asked before training, this saves the hours up to the first validation.
    """
    found: list[Tensor] = []
    labels: list[Tensor] = []
    bad: list[Unreadable] = []
    for start in range(0, rows, count):
        batch = images.read_pixels(range(start, min(start + count, rows)))
        found += batch.image
        labels += [] if batch.label is None else batch.label
        bad += [unreadable for _, unreadable in batch.unreadable]
        if len(found) >= count:
            break
    if not found:
        raise UserError(
            f"data: none of the first {rows:,} validation images can be read, and training.validation_images asks for "
            f"no more; the first: {bad[0]}"
        )
    return PixelBatch(torch.stack(found[:count]), torch.stack(labels[:count]) if labels else None, [])


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
