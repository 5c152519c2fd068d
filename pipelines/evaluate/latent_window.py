"""The latents of a window of held-out images: their means, and whether the latent is used."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from pipelines.base import distributed
from pipelines.base.errors import UserError
from pipelines.base.process_store import wait_for_all
from pipelines.base.progress import progress
from pipelines.data import ImageBatch, ImageDataset, ordered_batches
from pipelines.training.latent_usage import LatentUsage
from pipelines.training.tokenizer_task import labels_for, posterior_stream
from tokenizer import Autoencoder, OverallHealth
from tokenizer.latent_health import LatentHealth

SEED = 0  # of the draws from posteriors


@dataclass(frozen=True)
class LatentWindow:
    """Of the readable images of some rows, in their order.

    rows: their numbers. means: latents, flattened; the posterior's mean where there is one. None if they were not kept.
    """

    rows: list[int]
    means: Float[Tensor, "n d"] | None
    health: LatentHealth | OverallHealth


def latent_window(
    model: Autoencoder,
    images: ImageDataset,
    rows: range,
    batch_size: int,
    accelerator: Accelerator | None = None,
    keep_means: bool = True,
) -> LatentWindow:
    """Encode some rows, the processes together.

    Raises:
        UserError: none of the rows can be read.
    """
    mine, window = distributed.share_of(rows, accelerator), _Window(model, keep_means)
    visible = accelerator is None or accelerator.is_main_process
    with torch.no_grad(), progress(len(mine), "encode", "image", visible=visible) as meter:
        batches = ordered_batches(images, mine, batch_size, keep_empty=True)
        for start, batch in zip(range(0, len(mine), batch_size), batches, strict=True):
            requested = mine[start : start + batch_size]
            absent = {place for place, _ in batch.unreadable}
            if len(batch):
                window.add([row for place, row in enumerate(requested) if place not in absent], batch)
            meter.advance(len(requested))
    found = distributed.gather(window.rows, accelerator)
    if not found:
        raise UserError(f"data: none of {len(rows):,} images can be read")
    means = distributed.gather(window.means, accelerator)
    if accelerator is not None:
        wait_for_all(accelerator)  # what follows are collectives, which have a timeout
    return LatentWindow(found, torch.cat(means) if means else None, window.usage.report())


class _Window:
    """What one process has seen."""

    def __init__(self, model: Autoencoder, keep_means: bool):
        self.model, self.keep_means = model, keep_means
        self.device, self.prior = next(model.parameters()).device, model.latent_distribution()
        self.usage = LatentUsage(model, self.device)
        self.rows: list[int] = []
        self.means: list[Tensor] = []

    def add(self, rows: list[int], batch: ImageBatch) -> None:
        labels = labels_for(self.model, batch)
        out = self.model.encode(batch.image.to(self.device), condition=labels)
        streams = [posterior_stream(SEED, row.key) for row in batch.metadata]
        prior = self.model.latent_distribution(labels) if self.model.prior_takes_labels else self.prior
        self.usage.add(out.z, out.codes, out.posterior, prior, streams)
        self.rows += rows
        if self.keep_means:
            self.means.append(out.z.flatten(1).cpu())
