"""Images of a recipe's `data` block, whatever they come from, behind one interface."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipelines.base.errors import UserError
from pipelines.data.augment import Augment
from pipelines.data.binarize import Binarize
from pipelines.data.composition import CompositionConfig, CompositionSplits
from pipelines.data.dataset import Example, ImageBatch, ImageDataset, PixelBatch, Unreadable
from pipelines.data.huggingface import HuggingFaceConfig, HuggingFaceSplits
from pipelines.data.loader import ordered_batches, training_loader
from pipelines.data.preprocess import Preprocess
from pipelines.data.sampler import batch_indices
from pipelines.data.shapes import ShapesConfig, ShapesSplits
from pipelines.data.source import SPLITS, ImageSource, ImageSplits, RowMetadata, Split
from pipelines.data.splits import RowNumbers, carve_split
from pipelines.data.torchvision import TorchvisionConfig, TorchvisionSplits

__all__ = [
    "RESOURCES",
    "SPLITS",
    "Augment",
    "Binarize",
    "CompositionConfig",
    "DataConfig",
    "Example",
    "HuggingFaceConfig",
    "ImageBatch",
    "ImageDataset",
    "PixelBatch",
    "Preprocess",
    "RowMetadata",
    "ShapesConfig",
    "SourceConfig",
    "Split",
    "TorchvisionConfig",
    "Unreadable",
    "batch_indices",
    "open_images",
    "ordered_batches",
    "training_loader",
]

SourceConfig = Annotated[
    ShapesConfig | CompositionConfig | TorchvisionConfig | HuggingFaceConfig, Field(discriminator="kind")
]


RESOURCES = ("workers", "cache_bytes", "cache_file_bytes")  # of DataConfig; they change no image


class DataConfig(BaseModel):
    """The `data` block of a recipe.

    `on_unreadable`: "skip" leaves out what cannot be read and names it; "refuse" reads every image once at the start
    and stops if one cannot be read. `max_pixels`: larger images count as unreadable, by their header.
    `validation_fraction`, `test_fraction`: shares of the training rows that serve as these splits where the data has
    none of its own (0: do without). `augment` changes training images only; `binarize` (None: off) makes all images
    black and white. `workers`: threads that decode images (0:
    the cores of this process, at most 8).

    An image is decoded once: its prepared pixels are kept in memory where those of all rows of the source fit
    `cache_bytes`, which the processes of this machine share, and a quarter of its memory. Larger data sets, and those
    that several processes of this machine read, use a memory-mapped file of up to `cache_file_bytes` (and half of the
    free disk) in the folder $SMALTI_CACHE (default: ~/.cache/smalti). It stays for the next command and may be deleted
    at any time. 0 switches a cache off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: SourceConfig
    preprocess: Preprocess
    augment: Augment = Augment()
    binarize: Binarize | None = None
    on_unreadable: Literal["skip", "refuse"] = "skip"
    max_pixels: int = Field(default=50_000_000, ge=1)
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    test_fraction: float = Field(default=0.05, ge=0, lt=1)
    workers: int = Field(default=0, ge=0, le=256)
    cache_bytes: int = Field(default=2**31, ge=0)
    cache_file_bytes: int = Field(default=2**35, ge=0)


def open_splits(config: SourceConfig, size: int, max_pixels: int) -> ImageSplits:
    """The splits of a data set. `size`: pixels of the side of images that are drawn rather than read.

    Raises:
        UserError: there is no such data set, or a column or split that the recipe names is missing.
    """
    match config:
        case ShapesConfig():
            return ShapesSplits(config, size)
        case CompositionConfig():
            return CompositionSplits(config, size)
        case TorchvisionConfig():
            return TorchvisionSplits(config, max_pixels)
        case HuggingFaceConfig():
            return HuggingFaceSplits(config, max_pixels)


def open_images(config: DataConfig, split: Split, or_all: bool = False) -> ImageDataset:
    """Open one split of the data of a recipe. `or_all`: all training rows where it has none, not even a share of them.

    Raises:
        UserError: the data, a column or the split is missing, nothing is in it, or none of its images can be read (with
            on_unreadable: refuse: some image cannot be read).
    """
    source, rows = _find(config, split, or_all)
    if not (len(source) if rows is None else len(rows)):
        raise UserError(f"data: the {split} split of {source.provenance} is empty")
    augment = config.augment if split == "train" else Augment()
    budgets = config.cache_bytes, config.cache_file_bytes
    dataset = ImageDataset(source, config.preprocess, rows, augment, config.workers, *budgets, config.binarize, split)
    if config.on_unreadable == "refuse":
        dataset.check_all_readable()
    else:
        dataset.check_readable()
    return dataset


def _find(config: DataConfig, split: Split, or_all: bool) -> tuple[ImageSource, RowNumbers | None]:
    """The source to read from, and which of its rows belong to the split (None: all)."""
    splits = open_splits(config.source, config.preprocess.size, config.max_pixels)
    if split != "train" and (native := splits.find(split)) is not None:
        return native, None
    fractions: dict[Split, float] = {"validation": config.validation_fraction, "test": config.test_fraction}
    missing: dict[Split, float] = {
        name: share for name, share in fractions.items() if share and (name == split or splits.find(name) is None)
    }
    train = splits.find("train")
    assert train is not None
    if split != "train" and split not in missing:
        if or_all:
            return train, None
        raise UserError(f"data: there is no {split} split, and data.{split}_fraction is 0")
    return train, carve_split(len(train), missing, split) if missing else None
