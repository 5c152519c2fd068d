"""A small convolutional classifier, trained on real images only: a judge of what generated images show."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.base import distributed
from pipelines.base.atomic_files import replacing, sha256_of, write_json
from pipelines.base.errors import UserError
from pipelines.base.image_grids import save_grid
from pipelines.base.progress import console
from pipelines.base.recipe_files import validate
from pipelines.data import Preprocess, open_images, ordered_batches, training_loader
from pipelines.evaluate.classifier_recipe import ClassifierRecipe
from pipelines.models.checkpoint import resolve_folder
from pipelines.training.loop import Batch, Job, Phase, train
from pipelines.training.run_folder import RunFolder


class ClassifierConfig(BaseModel):
    """Convolutions of `width`, 2 `width`, 4 `width` channels, each followed by a halving of the image."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    channels: Literal[1, 3]
    num_classes: int = Field(ge=2)
    width: int = Field(default=16, ge=1)


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


def train_classifier(recipe: ClassifierRecipe, overwrite: bool = False) -> RunFolder:
    """Train on the train split by the one training loop, or continue; a finished classifier is left as it is.

    Raises:
        UserError: the data has no classes, or the output folder holds another recipe's run.
    """
    folder = RunFolder(recipe.output)
    accelerator = distributed.start(recipe.training.precision)
    with accelerator.main_process_first():
        folder.open(recipe, overwrite and accelerator.is_main_process)
    if folder.finished:
        if accelerator.is_main_process:
            console.print(f"{folder.path}: finished; nothing to do")
        return folder
    images, held_out = open_images(recipe.data, "train"), open_images(recipe.data, "validation")
    if not images.classes or len(images.classes) < 2:
        raise UserError(f"data: found classes {images.classes}, expected at least two to train a classifier on")
    classes, rows = tuple(images.classes), range(min(len(held_out), recipe.training.validation_images))
    torch.manual_seed(recipe.seed)
    config = ClassifierConfig(channels=recipe.data.preprocess.channels, num_classes=len(classes), width=recipe.width)

    def batches(start: int, rank: int, world: int) -> Iterator[Batch]:
        steps, size = recipe.training.steps, recipe.training.batch_size
        yield from training_loader(images, recipe.seed, size, steps, rank=rank, world=world, start_step=start)

    def judged(modules: Mapping[str, nn.Module]) -> tuple[Tensor, Tensor, Tensor]:
        model = cast(ClassifierPhase, modules["classifier"]).model
        device = next(model.parameters()).device
        found = [
            (batch.image, model(batch.image.to(device)).cpu(), cast(Tensor, batch.label))
            for batch in ordered_batches(held_out, rows, 500)
        ]
        pictures, logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return pictures, logits, labels

    def validate_(modules: Mapping[str, nn.Module]) -> dict[str, float]:
        _, logits, labels = judged(modules)
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": accuracy}

    def publish(modules: Mapping[str, nn.Module], target: Path) -> None:
        _save(target, cast(ClassifierPhase, modules["classifier"]).model, recipe, classes)

    def draw(modules: Mapping[str, nn.Module], step: int) -> None:
        pictures, logits, labels = judged(modules)
        wrong = (logits.argmax(1) != labels).nonzero().flatten()[:32].tolist()
        if wrong:
            captions = [f"{classes[labels[i]]}: {classes[logits[i].argmax()]}" for i in wrong]
            save_grid(folder.path / "pictures" / f"mistakes-{step:08d}.png", pictures[wrong], 8, captions)

    phase = Phase(ClassifierPhase(Classifier(config)), recipe.training.optimizer)
    job = Job(batches, validate_, publish, draw, watched="loss")
    train(folder, {"classifier": phase}, recipe.training, recipe.seed, job, accelerator)
    return folder


def load_classifier(folder: str | Path, device: str | torch.device = "cpu") -> LoadedClassifier:
    """The classifier of a run or model folder.

    Raises:
        UserError: missing folder, unknown key, wrong hash.
    """
    folder = resolve_folder(folder)
    config = validate(ClassifierFolder, json.loads((folder / "config.json").read_text()), folder / "config.json")
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_of(weights) != config.weights_sha256:
        raise UserError(f"{weights}: missing, or not the weights that config.json names: train the classifier again")
    model = Classifier(config.model)
    model.load_state_dict(load_file(weights), strict=True)
    return LoadedClassifier(model.to(device).eval(), config.classes, config.preprocess, folder)


def _save(folder: Path, model: Classifier, recipe: ClassifierRecipe, classes: tuple[str, ...]) -> None:
    weights = folder / "model.safetensors"
    with replacing(weights) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, temporary)
    identity = json.dumps(recipe.model_dump(mode="json", exclude={"output"}), sort_keys=True)
    config = ClassifierFolder(
        model=model.config,
        preprocess=recipe.data.preprocess,
        classes=classes,
        seed=recipe.seed,
        recipe_sha256=hashlib.sha256(identity.encode()).hexdigest(),
        weights_sha256=sha256_of(weights),
    )
    write_json(folder / "config.json", config.model_dump(mode="json"))
