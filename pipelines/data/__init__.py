"""Images of a recipe's `data` block, whatever they come from, behind one interface."""

from typing import Annotated, Literal

from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.data import huggingface, torchvision
from pipelines.data.augment import Augment
from pipelines.data.dataset import SPLITS, Example, ImageDataset, Source, Split, Unreadable
from pipelines.data.huggingface import HuggingFaceConfig
from pipelines.data.loader import ordered_loader, stack, training_loader
from pipelines.data.preprocess import Preprocess
from pipelines.data.sampler import TrainingBatches, batch_indices
from pipelines.data.shapes import Shapes, ShapesConfig
from pipelines.data.splits import carve
from pipelines.data.torchvision import TorchvisionConfig

__all__ = [
    "SPLITS",
    "Augment",
    "DataConfig",
    "Example",
    "HuggingFaceConfig",
    "ImageDataset",
    "Preprocess",
    "ShapesConfig",
    "SourceConfig",
    "Split",
    "TorchvisionConfig",
    "TrainingBatches",
    "Unreadable",
    "batch_indices",
    "open_images",
    "ordered_loader",
    "stack",
    "training_loader",
]

SourceConfig = Annotated[ShapesConfig | TorchvisionConfig | HuggingFaceConfig, Field(discriminator="kind")]


class DataConfig(BaseModel):
    """The `data` block of a recipe.

    `on_unreadable`: "skip" leaves out what cannot be read, naming it; "refuse" reads every image once at the start and
    stops at the first sight of trouble. `max_pixels`: larger pictures count as unreadable, judged by their header.
    `validation_fraction`, `test_fraction`: shares of the training rows that serve as these splits where the data has
    none of its own (0: do without). `augment` changes training images only. `workers`: processes that read ahead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: SourceConfig
    preprocess: Preprocess
    augment: Augment = Augment()
    on_unreadable: Literal["skip", "refuse"] = "skip"
    max_pixels: int = Field(default=50_000_000, ge=1)
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    test_fraction: float = Field(default=0.05, ge=0, lt=1)
    workers: int = Field(default=0, ge=0)


def open_images(config: DataConfig, split: Split) -> ImageDataset:
    """Open one split of the data of a recipe.

    Raises:
        UserError: the data, a column or the split is missing, nothing is in it, or (on_unreadable: refuse) some image
            cannot be read.
    """
    source, rows = _open(config, split)
    if not (len(source) if rows is None else len(rows)):
        raise UserError(f"data: the {split} split of {source.provenance} is empty")
    augment = config.augment if split == "train" else Augment()
    dataset = ImageDataset(source, config.preprocess, config.max_pixels, rows, augment, config.workers)
    if config.on_unreadable == "refuse" and not dataset.is_fast:
        dataset.refuse_unreadable()
    return dataset


def _open(config: DataConfig, split: Split) -> tuple[Source, Int64[Tensor, " n"] | None]:
    """The source to read from, and which of its rows belong to the split (None: all)."""
    match config.source:
        case ShapesConfig() as shapes:
            return Shapes(shapes, split, config.preprocess.size), None
        case TorchvisionConfig() as named:
            find = lambda wanted: torchvision.find(named, wanted, config.max_pixels)  # noqa: E731
        case HuggingFaceConfig() as hub:
            find = huggingface.Opened(hub, config.max_pixels).find
    fractions: dict[Split, float] = {"validation": config.validation_fraction, "test": config.test_fraction}
    if split != "train" and (native := find(split)) is not None:
        return native, None
    missing: dict[Split, float] = {
        name: share for name, share in fractions.items() if share and (name == split or find(name) is None)
    }
    if split != "train" and split not in missing:
        raise UserError(f"data: there is no {split} split, and data.{split}_fraction is 0")
    train = find("train")
    assert train is not None
    return train, carve(len(train), missing, split) if missing else None
