"""Any image data set of torchvision, by name: each family spells its splits its own way, which its signature tells."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torchvision import datasets

from pipelines.base.errors import UserError
from pipelines.data.dataset import Facts, FastPath, Split
from pipelines.data.image_files import BROKEN, decode

SPELLINGS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "trainval", "train-standard"),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
PROBES = 8  # rows on which the fast path proves that it reads what the data set itself would give


class TorchvisionConfig(BaseModel):
    """`name` in torchvision.datasets; `arguments` are passed to it as they are. `splits` says how the data set spells a
    split ({validation: val}) where that cannot be found out. With `download`, missing files are fetched into `root`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["torchvision"] = "torchvision"
    name: str
    root: str = "data"
    arguments: dict[str, Any] = {}
    splits: dict[Split, str] = {}
    download: bool = True


def find(config: TorchvisionConfig, split: Split, max_pixels: int) -> "Torchvision | None":
    """Open a split from the files at hand or by downloading; None where the data set has no such split.

    Raises:
        UserError: no such data set, arguments it does not take, data that is missing and cannot be downloaded, or items
            that are no images.
    """
    family = _family(config.name)
    parameters = inspect.signature(family.__init__).parameters
    if "train" in parameters or config.name == "EMNIST":
        if split == "validation":
            return None
        return _source(config, family, {"train": split == "train"}, split, max_pixels)
    if "split" in parameters and "split" not in config.arguments:
        names = (config.splits[split],) if split in config.splits else SPELLINGS[split]
        for name in names:
            try:
                return _source(config, family, {"split": name}, split, max_pixels)
            except UnknownSplit as error:
                if split in config.splits:
                    raise UserError(f"torchvision {config.name}: {error}") from error
        return None
    return _source(config, family, {}, split, max_pixels) if split == "train" else None


class UnknownSplit(Exception):
    pass


def _family(name: str) -> Callable[..., Any]:
    family = getattr(datasets, name, None) if name in datasets.__all__ else None
    if not inspect.isclass(family):
        known = ", ".join(n for n in sorted(datasets.__all__) if inspect.isclass(getattr(datasets, n)))
        raise UserError(f"source.name: torchvision has no data set {name!r}; it has {known}")
    return family


def _source(
    config: TorchvisionConfig, family: Callable[..., Any], spelled: dict[str, Any], split: Split, max_pixels: int
) -> "Torchvision":
    parameters = inspect.signature(family).parameters
    arguments = {**spelled, **config.arguments}
    if "root" in parameters:
        arguments["root"] = config.root
    if (
        "loader" in parameters or config.name == "ImageNet"
    ):  # its own would drop transparency and read the largest of pictures
        arguments["loader"] = Loader(max_pixels)
    can_download = "download" in parameters or config.name in ("EMNIST", "QMNIST")
    try:
        try:  # without the network first: what is there is used as it is
            data = family(**arguments, **({"download": False} if can_download else {}))
        except (RuntimeError, FileNotFoundError):
            if not (can_download and config.download):
                raise
            data = family(**arguments, download=True)
    except ValueError as error:
        if "split" in spelled and "argument split" in str(error):
            raise UnknownSplit(str(error)) from error
        raise UserError(f"torchvision {config.name}: {error}") from error
    except TypeError as error:
        raise UserError(f"torchvision {config.name} with arguments {config.arguments}: {error}") from error
    except ImportError as error:
        raise UserError(f"torchvision {config.name} needs a package that is not installed: {error}") from error
    except (RuntimeError, OSError, AssertionError, EOFError) as error:
        raise UserError(_missing(config, family, can_download, error)) from error
    return Torchvision(data, config, split)


def _missing(config: TorchvisionConfig, family: Any, can_download: bool, error: Exception) -> str:
    root = Path(config.root)
    if hasattr(family, "resources"):  # the MNIST family
        folder = root / config.name / "raw"
        resources = family.resources
        pairs = resources["train"] + resources["test"] if isinstance(resources, dict) else resources
        expected = ", ".join(Path(url).name.removesuffix(".gz") for url, _ in pairs) or "the unpacked idx files"
    else:
        folder = root / getattr(family, "base_folder", "")
        expected = "the files as torchvision unpacks them"
    tried = "cannot be read, and torchvision does not download it"
    if can_download:
        tried = "could not be downloaded" if config.download else "is not there, and source.download is false"
    return f"torchvision {config.name}: the data {tried} ({error}). Looked in {folder}, expected {expected}"


class Loader:
    """Opens an image file for torchvision: first frame, transparency kept, at most `max_pixels` pixels."""

    def __init__(self, max_pixels: int):
        self.max_pixels = max_pixels

    def __call__(self, path: str) -> Image.Image:
        return decode(path, self.max_pixels)


class Torchvision:
    """One split of a torchvision data set. Labels exist where targets are single integers."""

    def __init__(self, data: Any, config: TorchvisionConfig, split: Split):
        self.data, self.name, self.split = data, config.name, split
        self.root = Path(config.root).resolve()
        self.provenance: dict[str, Any] = {"kind": "torchvision", "path": config.name, "split": split}
        _check_gives_images(data, config.name)
        targets = _targets(data)
        self.classes = _classes(data, targets)
        self.fast: FastPath | None = None if targets is None else _in_memory(self, targets)

    def __len__(self) -> int:
        return len(self.data)

    def key(self, row: int) -> str:
        for name in ("samples", "_samples", "_image_files", "_images", "images", "filename"):
            listed = getattr(self.data, name, None)
            if isinstance(listed, Sequence) and len(listed) == len(self.data):
                path = listed[row][0] if isinstance(listed[row], (tuple, list)) else listed[row]
                if isinstance(path, (str, Path)):
                    path = Path(path)
                    inside = path.is_absolute() and path.is_relative_to(self.root)
                    return str(path.relative_to(self.root) if inside else path)
        return f"{self.name}-{self.split}-{row:06d}"

    def read(self, row: int) -> tuple[Image.Image, Facts]:
        image, target = self.data[row]
        label = int(target) if self.classes is not None else None
        if label is not None and not 0 <= label < len(self.classes or ()):
            raise ValueError(f"label {label} is none of the {len(self.classes or ())} classes")
        return image, Facts(self.key(row), label)


def _check_gives_images(data: Any, name: str) -> None:
    try:
        item = data[0] if len(data) else (Image.new("L", (1, 1)), None)
    except BROKEN:
        return  # an unreadable picture is no reason to refuse the others
    if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Image.Image)):
        found = type(item[0] if isinstance(item, tuple) else item).__name__
        raise UserError(f"torchvision {name} gives {found}, not images with a target")


def _integer(target: Any) -> bool:
    if isinstance(target, (np.ndarray, Tensor)):
        return target.ndim == 0 and not (target.is_floating_point() if isinstance(target, Tensor) else False)
    return isinstance(target, (int, np.integer)) and not isinstance(target, bool)


def _targets(data: Any) -> Int64[Tensor, " n"] | None:
    """All targets, where the data set lists them as integers; QMNIST's rows begin with the class."""
    for name in ("targets", "labels", "_labels"):
        listed = getattr(data, name, None)
        if listed is not None and len(listed) == len(data) and len(listed):
            try:
                targets = torch.as_tensor(np.asarray(listed).astype(np.int64, casting="same_kind"))
            except (ValueError, TypeError):
                return None
            return targets[:, 0] if targets.ndim == 2 else targets if targets.ndim == 1 else None
    return None


def _classes(data: Any, targets: Tensor | None) -> list[str] | None:
    """Names of the classes; plain numbers where the data set gives none. None where the targets are no integers."""
    if not len(data):
        return None
    named = getattr(data, "classes", None) or getattr(data, "categories", None)
    if targets is None:
        try:
            target = data[0][1]
        except BROKEN:
            target = 0 if named else None
        if not _integer(target):
            return None
    if isinstance(named, Sequence) and not isinstance(named, str):
        return [", ".join(n) if isinstance(n, (tuple, list)) else str(n) for n in named]
    if isinstance(count := getattr(data, "num_classes", None), int):
        return [str(i) for i in range(count)]
    return None if targets is None or int(targets.max()) < 0 else [str(i) for i in range(int(targets.max()) + 1)]


class InMemory:
    """The whole split as one uint8 tensor."""

    def __init__(self, source: Torchvision, images: UInt8[Tensor, "n c h w"], targets: Int64[Tensor, " n"]):
        self.source, self.images, self.targets = source, images, targets
        channels, height, width = images.shape[1:]
        self.shape = (channels, height, width)

    def pixels(self, rows: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        return self.images[rows]

    def labels(self, rows: Int64[Tensor, " n"]) -> Int64[Tensor, " n"] | None:
        return None if self.source.classes is None else self.targets[rows]

    def facts(self, rows: Int64[Tensor, " n"]) -> list[Facts]:
        labels = self.labels(rows)
        known = [None] * len(rows) if labels is None else labels.tolist()
        return [Facts(self.source.key(row), label) for row, label in zip(rows.tolist(), known, strict=True)]


def _in_memory(source: Torchvision, targets: Int64[Tensor, " n"]) -> InMemory | None:
    """The split as one tensor where `data.data` is such an array, in a layout that a few rows confirm."""
    held = getattr(source.data, "data", None)
    if not isinstance(held, (np.ndarray, Tensor)) or len(held) != len(source) or not len(held):
        return None
    held = torch.as_tensor(held)
    if held.dtype != torch.uint8 or held.ndim not in (3, 4) or (source.classes is not None and int(targets.min()) < 0):
        return None
    probes = range(0, len(held), -(-len(held) // PROBES))
    for images in [held[:, None]] if held.ndim == 3 else [held, held.permute(0, 3, 1, 2)]:
        if images.shape[1] in (1, 3) and all(_agrees(source, row, images[row], int(targets[row])) for row in probes):
            return InMemory(source, images.contiguous(), targets)
    return None


def _agrees(source: Torchvision, row: int, pixels: Tensor, target: int) -> bool:
    image, facts = source.read(row)
    shown = np.asarray(image)
    shown = shown[None] if shown.ndim == 2 else shown.transpose(2, 0, 1)
    same_label = source.classes is None or facts.label == target
    return same_label and shown.shape == pixels.shape and bool((shown == pixels.numpy()).all())
