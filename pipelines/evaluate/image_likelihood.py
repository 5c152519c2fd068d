"""What a stage-one model says of single held-out images: bounds of -ln p(x), and the reconstruction."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pipelines.data import ImageBatch, ImageDataset
from pipelines.evaluate.prior_bits import prior_bits_of
from pipelines.evaluate.row_figures import RowFigures, measure_rows
from pipelines.models.checkpoint import LoadedPrior
from pipelines.training.tokenizer_task import labels_for, posterior_stream
from tokenizer import Autoencoder, likelihood_bounds, psnr
from tokenizer.importance import DRAWS_PER_BLOCK

SEED = 0  # of the latents that are drawn
LOOKED_AT = 64  # images
CPU_BYTES, GPU_BYTES = 2**23, 2**29  # of the maps that the likelihood gets in one pass


@dataclass(frozen=True)
class Mean:
    """Of figures of single images; `standard_error` of the mean is None for a single one."""

    mean: float
    standard_error: float | None


def images_per_pass(model: Autoencoder, draws: int, most: int) -> int:
    """How many images are decoded at once, at most `most`. On a CPU the maps of a pass fit its caches: larger ones
    were no faster, Fashion-MNIST with 1 to 64 images.
    """
    return max(1, min(most, maps_per_pass(model) // min(draws, DRAWS_PER_BLOCK)))


def maps_per_pass(model: Autoencoder) -> int:
    """How many latents are decoded at once."""
    one = model.likelihood.out_channels * model.config.image_size**2 * 4
    budget = CPU_BYTES if next(model.parameters()).device.type == "cpu" else GPU_BYTES
    return max(1, budget // one)


@torch.no_grad()
def bounds_of(model: Autoencoder, batch: ImageBatch, draws: int) -> dict[str, Tensor]:
    """Of each image: both bounds of -ln p(x) in nats from `draws` latents, how many of these count, and PSNR of the
    reconstruction from the posterior's mean. The draws of an image follow from its key alone.
    """
    images, labels = batch.image.to(next(model.parameters()).device), labels_for(model, batch)
    streams = [posterior_stream(SEED, row.key) for row in batch.metadata]
    found = likelihood_bounds(model, images, draws, streams, labels, at_once=maps_per_pass(model))
    return {
        "negative_elbo": found.negative_elbo,
        "nll": found.nll,
        "effective_draws": found.effective_draws,
        "psnr": psnr(model.reconstruct(images, labels), images),
    }


@torch.no_grad()
def reconstruction_of(model: Autoencoder, batch: ImageBatch) -> dict[str, Tensor]:
    """Of each image, by a model whose latent is not random: -ln p(x | z) in nats, and PSNR."""
    images = batch.image.to(next(model.parameters()).device)
    out = model(images, condition=labels_for(model, batch))
    return {"reconstruction_nll": out.terms["nll"][:, 0], "psnr": psnr(model.likelihood.mean(out.params), images)}


def measure_images(
    model: Autoencoder,
    images: ImageDataset,
    rows: int,
    draws: int,
    batch_size: int,
    output: Path,
    accelerator: Accelerator,
    prior: LoadedPrior | None = None,
) -> list[RowFigures]:
    """Bounds of the likelihood where the latent is random, else the error of the reconstruction, and what the codes of
    the image cost by the `prior` of an image pipeline.
    """
    if not model.is_random:

        def measure(batch: ImageBatch) -> dict[str, Tensor]:
            bits = {} if prior is None else prior_bits_of(model, prior, images, batch)
            return reconstruction_of(model, batch) | bits

        return measure_rows(images, rows, batch_size, measure, output, accelerator, "reconstruct")
    size = images_per_pass(model, draws, batch_size)
    return measure_rows(
        images, rows, size, lambda batch: bounds_of(model, batch, draws), output, accelerator, "likelihood"
    )


def pixels_are_known(model: Autoencoder, images: ImageDataset) -> bool:
    """Whether the first images have only pixels of the values that the likelihood gives a probability."""
    batch = images.read_pixels(range(min(len(images), LOOKED_AT)))
    bins = model.likelihood.bins
    return bins is None or not (batch.image.int() * (bins - 1) % 255).any()


def mean_of(values: Iterable[float]) -> Mean:
    """The mean over images and its standard error."""
    found = list(values)
    mean = math.fsum(found) / len(found)
    if len(found) == 1:
        return Mean(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in found) / (len(found) - 1)
    return Mean(mean, math.sqrt(variance / len(found)))
