"""A small convolutional classifier, trained on real images only: it tells what generated images show."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pipelines.base.atomic_files import write_json, write_text
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid
from pipelines.data import Preprocess, open_images, ordered_batches, training_loader
from pipelines.evaluate.classifier_recipe import ClassifierRecipe, Width
from pipelines.models.checkpoint import read_config, resolve_folder
from pipelines.models.weights import load_model, write_weights
from pipelines.training.collective import Collective
from pipelines.training.size_limits import check_sizes
from pipelines.training.task import Models, OptimizedPhase, TensorBatch
from pipelines.training.validation import block_size, mean_figures, own_rows, readable_images

SMALLEST_IMAGE = 8  # pixels: the classifier halves an image three times


class ClassifierConfig(BaseModel):
    """Convolutions of `width`, 2 `width`, 4 `width` channels, each followed by a halving of the image."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    channels: Literal[1, 3]
    num_classes: int = Field(ge=2)
    width: Width = 16


class ClassifierFolder(BaseModel):
    """`config.json` of a classifier: `recipe_sha256` identifies the data, the seed and the training."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["smalti-classifier/1"] = "smalti-classifier/1"
    model: ClassifierConfig
    preprocess: Preprocess
    classes: tuple[str, ...]
    seed: int
    recipe_sha256: str
    weights_sha256: str


class Classifier(nn.Module):
    """uint8 images (b, c, h, w) of at least 8 x 8 pixels -> logits (b, num_classes)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        widths = (config.channels, config.width, 2 * config.width, 4 * config.width)
        self.features = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                )
                for before, after in itertools.pairwise(widths)
            )
        )
        self.head = nn.Linear(9 * widths[-1], config.num_classes)  # a 3 x 3 summary keeps where things are

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.head(F.adaptive_avg_pool2d(self.features(images.float() / 127.5 - 1), 3).flatten(1))


class ClassifierPhase(nn.Module):
    """Cross-entropy and accuracy of a batch of "image" and "label"."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model

    def forward(self, batch: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        logits, labels = self.model(batch["image"]), batch["label"]
        loss = F.cross_entropy(logits, labels)
        return loss, {"loss": loss.detach(), "accuracy": (logits.argmax(1) == labels).float().mean()}

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def after_step(self, step: int) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier in eval mode, the classes it tells apart, and the preprocessing of the images it has seen."""

    model: Classifier
    classes: tuple[str, ...]
    preprocess: Preprocess
    folder: Path

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "n c h w"], batch_size: int = 500) -> Int[Tensor, " n"]:
        """The most likely class of each image."""
        device = next(self.model.parameters()).device
        return torch.cat([self.model(part.to(device)).argmax(1).cpu() for part in images.split(batch_size)])


class ClassifierTask:
    """A classifier as a task of the training loop. Images without a label are left out.

    Raises:
        UserError: the data cannot be opened, no image that validation would read is readable, the images are smaller
            than 8 x 8 pixels, or there are no classes or labels.
    """

    monitor = "loss"
    best_is_latest = False

    def __init__(self, recipe: ClassifierRecipe, card: str = ""):
        self.recipe, self.card, size = recipe, card, recipe.data.preprocess.size
        if size < SMALLEST_IMAGE:
            raise UserError(f"data.preprocess.size: found {size}, a classifier needs at least {SMALLEST_IMAGE} pixels")
        images, held_out = open_images(recipe.data, "train"), open_images(recipe.data, "validation")
        if not images.classes or len(images.classes) < 2:
            raise UserError(f"data: found classes {images.classes}, expected at least two to train a classifier on")
        self.images, self.held_out = images.labelled(), held_out.labelled()
        readable_images(self.held_out, self._rows, 1)
        self.classes = tuple(images.classes)
        config = ClassifierConfig(
            channels=recipe.data.preprocess.channels, num_classes=len(self.classes), width=recipe.width
        )
        pixels = config.channels * size**2
        check_sizes(recipe.training, lambda: Classifier(config), 5 * pixels)  # as bytes and as float32
        self.phases = {"classifier": OptimizedPhase(ClassifierPhase(Classifier(config)), recipe.training.optimizer)}

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[TensorBatch]:
        training, seed = self.recipe.training, self.recipe.seed
        yield from training_loader(self.images, seed, training.batch_size, training.steps, rank, world, start_step)

    def validate(self, models: Models, collective: Collective) -> dict[str, float]:
        """Cross-entropy and accuracy of held-out images."""
        size = block_size(self.recipe.training)

        def blocks() -> Iterator[dict[str, Tensor]]:
            for _, logits, labels in self._classified(models, own_rows(self._rows, size, collective), size):
                loss = F.cross_entropy(logits, labels, reduction="none")
                yield {"loss": loss, "accuracy": (logits.argmax(1) == labels).float()}

        return mean_figures(blocks(), collective)

    def publish(self, models: Models, folder: Path) -> None:
        save_classifier(folder, cast(Classifier, models["classifier"]), self.recipe, self.classes, self.card)

    def save_figures(self, models: Models, folder: Path, step: int) -> None:
        """Held-out images that are classified wrongly, as "class: what was predicted"."""
        images, captions = [], []
        for pixels, logits, labels in self._classified(models, range(self._rows), block_size(self.recipe.training)):
            predicted = logits.argmax(1)
            for row in (predicted != labels).nonzero().flatten().tolist():
                images.append(pixels[row])
                captions.append(f"{self.classes[labels[row]]}: {self.classes[predicted[row]]}")
            if len(images) >= 32:
                break
        if images:
            save_grid(folder / f"mistakes-{step:08d}.png", torch.stack(images[:32]), 8, captions[:32])

    @property
    def _rows(self) -> int:
        return min(len(self.held_out), self.recipe.training.validation_images)

    def _classified(
        self, models: Models, rows: Sequence[int], size: int
    ) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Float[Tensor, "b k"], Int[Tensor, " b"]]]:
        """Blocks of held-out images, their logits and their labels; the latter two on the CPU."""
        model = cast(Classifier, models["classifier"])
        device = next(model.parameters()).device
        for batch in ordered_batches(self.held_out, rows, size):
            yield batch.image, model(batch.image.to(device)).cpu(), cast(Tensor, batch.label)


def load_classifier(folder: str | Path, device: str | torch.device = "cpu") -> LoadedClassifier:
    """The classifier of a run or model folder.

    Raises:
        UserError: missing folder, another format, unknown key, weights of other shapes, wrong hash.
    """
    folder = resolve_folder(folder)
    config = read_config(folder, ClassifierFolder)
    model = load_model(folder, config.model, lambda: Classifier(config.model), config.weights_sha256)
    return LoadedClassifier(model.to(device).eval(), config.classes, config.preprocess, folder)


def save_classifier(
    folder: Path, model: Classifier, recipe: ClassifierRecipe, classes: tuple[str, ...], card: str = ""
) -> None:
    """Write a classifier's folder, `config.json` last."""
    weights = write_weights(folder, model)
    identity = json.dumps(recipe.model_dump(mode="json", exclude={"output"}), sort_keys=True)
    config = ClassifierFolder(
        model=model.config,
        preprocess=recipe.data.preprocess,
        classes=classes,
        seed=recipe.seed,
        recipe_sha256=hashlib.sha256(identity.encode()).hexdigest(),
        weights_sha256=weights,
    )
    write_text(folder / "README.md", card or "# A smalti classifier\n")
    write_json(folder / "config.json", config.model_dump(mode="json"))
