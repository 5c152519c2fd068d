"""Stage one as a task of the training loop."""

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from pipelines.base import random_streams
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid
from pipelines.base.progress import say
from pipelines.data import DataConfig, ImageDataset, open_images, ordered_batches, training_loader
from pipelines.data.dataset import PixelBatch
from pipelines.models.checkpoint import save_tokenizer
from pipelines.training.collective import Collective
from pipelines.training.config import TokenizerTrainingConfig
from pipelines.training.latent_regularizers import check_regularizers, phases_of, trained_modules
from pipelines.training.latent_usage import LatentUsage, collapse_in_words, figures_of
from pipelines.training.size_limits import check_sizes
from pipelines.training.task import Models, TensorBatch
from pipelines.training.validation import block_size, mean_figures, own_rows, readable_images
from tokenizer import Autoencoder, AutoencoderConfig, AutoencoderPhase, ObjectiveConfig, evaluate

GUARDED = "guarded kl "


class TokenizerTask:
    """An autoencoder, trained on the images of `data`. `card` is published with the weights.

    The weights of least held-out loss are the best. That loss leaves the terms of the batch out. Where regularizers or
    a discriminator shape the latents, least loss would be least reconstruction error, before the latents follow their
    prior: there the weights of the latest validation are the best.

    Raises:
        UserError: the data cannot be opened, no image that validation would read is readable, its classes are not those
            of the model's condition, the objective does not fit the model, or `patience` has no figure to wait for.
    """

    monitor = "loss"

    def __init__(
        self,
        data: DataConfig,
        model: AutoencoderConfig,
        objective: ObjectiveConfig,
        training: TokenizerTrainingConfig,
        seed: int,
        card: str = "",
    ):
        self.data, self.objective, self.training, self.seed, self.card = data, objective, training, seed, card
        pixels, draws = model.channels * model.image_size**2, objective.draws
        examples = f"images of {draws:,} draws (objective.draws)" if draws > 1 else "images"
        # An image as bytes, and what is decoded from each draw as float32.
        check_sizes(training, lambda: trained_modules(model, objective), pixels * (1 + 4 * draws), examples)
        self.images, self.held_out = open_images(data, "train"), open_images(data, "validation")
        self.classes = label_names(model, self.images, self.held_out)
        self.rows = min(len(self.held_out), training.validation_images)
        self.shown = readable_images(self.held_out, self.rows, 16)
        try:
            phase = AutoencoderPhase(Autoencoder(model), objective)
        except ValueError as error:
            raise UserError(f"objective.{error}") from error
        check_regularizers(phase, training)
        self.best_is_latest = bool(terms := unseen_terms(objective, training))
        if terms and training.patience is not None:
            raise UserError(
                f"training.patience: found {training.patience}, but the loss of held-out images has no "
                f"{', '.join(terms)}, a term of the whole batch, so it cannot say when to stop; expected null"
            )
        self.collapsed = False  # at the last validation of this process
        self.phases = phases_of(phase, training)

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[TensorBatch]:
        size, steps = self.training.batch_size, self.training.steps
        yield from training_loader(self.images, self.seed, size, steps, rank, world, start_step)

    def validate(self, models: Models, collective: Collective) -> dict[str, float]:
        """The terms and the objective, from one pass of the encoder; bounds, as `tokenizer.evaluate`. Weights are those
        of the last step, a guard's allowances are for the mean over all images.
        """
        model, step = autoencoder(models), last_step(self.training)
        usage, guard, weights = LatentUsage(model, collective.device), self.objective.kl_guard, self.objective.weights

        def blocks() -> Iterator[dict[str, Tensor]]:
            size = block_size(self.training)
            for batch in ordered_batches(self.held_out, own_rows(self.rows, size, collective), size):
                images = batch.image.to(collective.device)
                streams = [posterior_stream(self.seed, row.key) for row in batch.metadata]
                labels = labels_for(model, batch)
                found = evaluate(model, images, self.objective, step, streams, labels)
                usage.add(found.z, found.codes, found.posterior, found.latent_prior, streams)
                groups = () if found.guarded_kl is None else found.guarded_kl.unbind(1)
                yield found.figures | {f"{GUARDED}{i}": kl for i, kl in enumerate(groups)}

        means = mean_figures(blocks(), collective)
        figures = {name: mean for name, mean in means.items() if not name.startswith(GUARDED)}
        if guard is not None:
            groups = torch.tensor([mean for name, mean in means.items() if name.startswith(GUARDED)])
            figures["loss"] += weights["kl"].at(step) * guard.penalty(groups, step).item() / model.dims
        health = usage.report()
        if collective.is_first and (change := collapse_in_words(health, self.collapsed)):
            say(f"smalti: {change}")
        self.collapsed = health.verdict == "collapsed"
        return figures | figures_of(health)

    def publish(self, models: Models, folder: Path) -> None:
        save_tokenizer(folder, autoencoder(models), self.data.preprocess, self.classes, card=self.card)

    def save_figures(self, models: Models, folder: Path, step: int) -> None:
        """Held-out images above their reconstructions; of a continuous model also samples of its latent prior, with a
        condition every class in turn.
        """
        model = autoencoder(models)
        device = next(model.parameters()).device
        columns, labels = min(8, len(self.shown)), labels_for(model, self.shown)
        pairs = []
        for start in range(
            0, len(self.shown) - columns + 1, columns
        ):  # full rows, an original above its reconstruction
            row = slice(start, start + columns)
            originals, rebuilt = self.shown.image[row], None if labels is None else labels[row]
            pairs += [*originals, *model.reconstruct(originals.to(device), rebuilt).cpu()]
        save_grid(folder / f"reconstructions-{step:08d}.png", pairs, columns)
        if model.num_codes is None:
            wanted = torch.arange(32) % len(self.classes) if self.classes else None
            captions = list(islice(cycle(self.classes), 32)) if self.classes else None
            samples = model.sample(32, torch.Generator(device).manual_seed(self.seed), wanted).cpu()
            save_grid(folder / f"samples-{step:08d}.png", samples, columns=8, captions=captions)


def unseen_terms(objective: ObjectiveConfig, training: TokenizerTrainingConfig) -> list[str]:
    """The terms of regularizers and discriminator that count at the step whose weights validation takes, the last."""
    return [name for name in objective.latent_terms if objective.weights[name].at(last_step(training)) > 0]


def last_step(training: TokenizerTrainingConfig) -> int:
    """One more may begin the next cycle of a schedule."""
    return training.steps - 1


def label_names(model: AutoencoderConfig, *splits: ImageDataset) -> tuple[str, ...] | None:
    """The names of the labels that the model takes; None for a model without a condition.

    Raises:
        UserError: the data has no classes, or another number of them.
    """
    if model.condition is None:
        return None
    for split in splits:
        found = None if split.classes is None else len(split.classes)
        if found != model.condition.num_classes:
            raise UserError(
                f"model.condition.num_classes: found {model.condition.num_classes}, but the data has "
                f"{'no' if found is None else found} classes; expected the same"
            )
    return tuple(splits[0].classes or ())


def labels_for(model: Autoencoder, batch: PixelBatch) -> Tensor | None:
    """The labels of a batch where the model takes them and the data has them."""
    return batch.label if model.takes_labels else None


def autoencoder(models: Models) -> Autoencoder:
    return cast(Autoencoder, models["tokenizer"])


def posterior_stream(seed: int, key: str) -> torch.Generator:
    """Where the latents of a held-out image are sampled from: the same at every validation, in any batch."""
    return torch.Generator().manual_seed(random_streams.seed_of((seed, "posterior", key)))
