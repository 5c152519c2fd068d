"""Any image data set of torchvision, by name. Its signature tells how it names its splits."""

import fcntl
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.data.file_states import file_state, files_below
from pipelines.data.image_files import DECODE_ERRORS, check_size, open_image
from pipelines.data.source import PixelArray, Reader, RowContent, RowMetadata, Split

SPELLINGS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "trainval", "train-standard"),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
UNKNOWN = -2  # a target that no item has shown so far
PROBES = 8  # rows that must agree between an array of pixels and the items of the data set


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


class TorchvisionSplits:
    """All splits of one data set."""

    def __init__(self, config: TorchvisionConfig, max_pixels: int):
        self.config, self.max_pixels = config, max_pixels

    def find(self, split: Split) -> "Torchvision | None":
        """Open a split from the files at hand or by downloading; None where the data set has no such split.

        Raises:
            UserError: no such data set, arguments it does not take, data that is missing and cannot be downloaded, or
                items that are no images.
        """
        config, family = self.config, _family(self.config.name)
        parameters = inspect.signature(family.__init__).parameters
        if "train" in parameters or config.name == "EMNIST":
            return None if split == "validation" else self._open(family, {"train": split == "train"}, split)
        if "split" not in parameters or "split" in config.arguments:
            return self._open(family, {}, split) if split == "train" else None
        for name in (config.splits[split],) if split in config.splits else SPELLINGS[split]:
            try:
                return self._open(family, {"split": name}, split)
            except UnknownSplit as error:
                if split in config.splits:
                    raise UserError(f"torchvision {config.name}: {error}") from error
        return None

    def _open(self, family: Callable[..., Any], spelled: dict[str, Any], split: Split) -> "Torchvision":
        return Torchvision(_load(self.config, family, spelled, self.max_pixels), self.config, split, self.max_pixels)


class UnknownSplit(Exception):
    pass


def _family(name: str) -> Callable[..., Any]:
    from torchvision import datasets  # slow to import, and a recipe is checked without it

    family = getattr(datasets, name, None) if name in datasets.__all__ else None
    if not inspect.isclass(family):
        known = ", ".join(n for n in sorted(datasets.__all__) if inspect.isclass(getattr(datasets, n)))
        raise UserError(f"source.name: torchvision has no data set {name!r}; it has {known}")
    return family


def _load(config: TorchvisionConfig, family: Callable[..., Any], spelled: dict[str, Any], max_pixels: int) -> Any:
    """The data set, from the files at hand where they are there."""
    parameters = inspect.signature(family).parameters
    arguments = {**spelled, **config.arguments}
    if "root" in parameters:
        arguments["root"] = config.root
    if "loader" in parameters or config.name == "ImageNet":
        arguments["loader"] = Loader(max_pixels)  # its own drops transparency and reads images of any size
    can_download = "download" in parameters or config.name in ("EMNIST", "QMNIST")
    try:
        try:
            data = family(**arguments, **({"download": False} if can_download else {}))
        except (RuntimeError, FileNotFoundError):
            if not (can_download and config.download):
                raise
            data = _download(family, arguments, Path(config.root))
        len(data)
    except ValueError as error:
        if "split" in spelled and "argument split" in str(error):
            raise UnknownSplit(str(error)) from error
        raise UserError(f"torchvision {config.name} with arguments {config.arguments}: {error}") from error
    except (TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"torchvision {config.name} with arguments {config.arguments}: {error}") from error
    except ImportError as error:
        raise UserError(f"torchvision {config.name} needs a package that is not installed: {error}") from error
    except (RuntimeError, OSError, AssertionError, EOFError) as error:
        raise UserError(_missing(config, family, can_download, error)) from error
    return data


def _download(family: Callable[..., Any], arguments: dict[str, Any], root: Path) -> Any:
    """One process downloads; those that wait for it find the files there."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".download.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return family(**arguments, download=False)
        except (RuntimeError, FileNotFoundError):
            return family(**arguments, download=True)


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
        return open_image(path, self.max_pixels)


class Torchvision:
    """One split of a torchvision data set. Labels exist where targets are single integers. Where the data set decodes
    files by its own means, `max_pixels` is checked after PIL's own limit.
    """

    has_text = False

    def __init__(self, data: Any, config: TorchvisionConfig, split: Split, max_pixels: int = 2**62):
        self.data, self.name, self.split, self.max_pixels = data, config.name, split, max_pixels
        self.root = os.path.abspath(config.root)
        self.provenance: dict[str, Any] = {"kind": "torchvision", "path": config.name, "split": split}
        self._options = [config.name, split, config.splits, config.arguments, self.root, max_pixels]
        self._check_gives_images()
        self.targets = _targets(data)
        self.classes = self._classes()
        self._met = np.full(0 if self.targets is not None or self.classes is None else len(data), UNKNOWN, np.int32)
        self.array: PixelArray | None = None if self.targets is None else _in_memory(self, self.targets)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def fingerprint(self) -> str | None:
        """Of the options, the targets, and size and time of the files, or of the root's where none are listed."""
        digest = hashlib.sha256(json.dumps([self._options, self.classes, len(self)], default=str).encode())
        if self.targets is not None:
            digest.update(self.targets.numpy().tobytes())
        for path in files_below(self.root) if self._files is None else map(_path_of, self._files):
            digest.update(f"\n{path} {file_state(path)}".encode())
        return digest.hexdigest()

    def metadata(self, rows: Sequence[int], labels: Int64[Tensor, " n"] | None = None) -> list[RowMetadata]:
        labels = self.labels(rows) if labels is None else labels
        known = [-1] * len(rows) if labels is None else labels.tolist()
        return [RowMetadata(self._key(r), None if n < 0 else n) for r, n in zip(rows, known, strict=True)]

    def labels(self, rows: Sequence[int]) -> Int64[Tensor, " n"] | None:
        if self.classes is None:
            return None
        if self.targets is None:
            return torch.tensor([self._label(row) for row in rows], dtype=torch.int64)
        found = self.targets[torch.as_tensor(rows, dtype=torch.int64)]
        return torch.where((found >= 0) & (found < len(self.classes)), found, -1)

    def factors(self, rows: Sequence[int]) -> None:
        return None

    def contents(self, rows: Sequence[int]) -> list[RowContent]:
        targets = [None] * len(rows) if self.targets is None else self.targets[torch.as_tensor(rows)].tolist()
        if self.array is None:
            pictures = [None if (path := self._path(row)) is None else str(path) for row in rows]
        else:
            pictures = [pixels.tobytes() for pixels in self.array.pixels(torch.as_tensor(rows)).numpy()]
        known = zip(rows, targets, pictures, strict=True)
        return [RowContent([self._key(row), target], picture) for row, target, picture in known]

    def readers(self, rows: Sequence[int]) -> list[Reader]:
        return [lambda row=row: self._image(row) for row in rows]

    def item(self, row: int) -> tuple[Any, Any]:
        """What the data set gives for a row. FakeData seeds torch's global generator for that, which no thread may do:
        here it draws the same numbers from a generator of its own.
        """
        if self.name != "FakeData":
            return self.data[row]
        from torchvision.transforms.functional import to_pil_image

        generator = torch.Generator().manual_seed(row + self.data.random_offset)
        image = torch.randn(*self.data.image_size, generator=generator)
        return to_pil_image(image), int(torch.randint(self.data.num_classes, (1,), generator=generator))

    def _image(self, row: int) -> Image.Image:
        try:
            image, target = self.item(row)
        except DECODE_ERRORS:
            self._remember(row, None)
            raise
        self._remember(row, target)
        check_size(image, self.max_pixels)
        return image

    def _label(self, row: int) -> int:
        """Of a row that nothing but its item tells; -1 where there is none. Decoding says what is wrong."""
        if self._met[row] == UNKNOWN:
            with suppress(*DECODE_ERRORS):
                self._image(row)
        return int(self._met[row])

    def _remember(self, row: int, target: Any) -> None:
        if len(self._met):
            label = int(target) if _integer(target) else -1
            self._met[row] = label if 0 <= label < len(self.classes or ()) else -1

    def _key(self, row: int) -> str:
        path = self._path(row)
        return f"{self.name}-{self.split}-{row:06d}" if path is None else path.relative_to(self.root).as_posix()

    def _path(self, row: int) -> Path | None:
        """The file of an image, where the data set lists files below its root."""
        return None if self._files is None else self._below_root(_path_of(self._files[row]))

    @cached_property
    def _files(self) -> Sequence[Any] | None:
        """The data set's own list of files, or of files and their targets; None where it has none below its root."""
        for name in ("samples", "_samples", "_image_files", "_images", "images", "filename"):
            listed = getattr(self.data, name, None)
            if not isinstance(listed, Sequence) or not 0 < len(listed) == len(self.data):
                continue
            if self._below_root(_path_of(listed[0])) is not None:
                return listed
        return None

    def _below_root(self, path: Any) -> Path | None:
        if not isinstance(path, (str, Path)):
            return None
        whole = Path(os.path.abspath(path))
        return whole if whole.is_relative_to(self.root) else None

    def _check_gives_images(self) -> None:
        try:
            item = self.item(0) if len(self.data) else (Image.new("L", (1, 1)), None)
        except DECODE_ERRORS:
            return  # an unreadable image is no reason to refuse the others
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Image.Image)):
            found = type(item[0] if isinstance(item, tuple) else item).__name__
            raise UserError(f"torchvision {self.name} gives {found}, not images with a target")

    def _classes(self) -> list[str] | None:
        """Names of the classes; their numbers where the data set names none. None where targets are no integers, and
        where no row has one (STL10's unlabelled images).
        """
        data, targets = self.data, self.targets
        if not len(data):
            return None
        named = getattr(data, "classes", None) or getattr(data, "categories", None)
        if targets is None:
            try:
                target = self.item(0)[1]
            except DECODE_ERRORS:
                target = 0 if named else None
            if not _integer(target):
                return None
        if isinstance(named, Sequence) and not isinstance(named, str):
            withheld = targets is not None and not bool(((targets >= 0) & (targets < len(named))).any())
            return None if withheld else [", ".join(n) if isinstance(n, (tuple, list)) else str(n) for n in named]
        if isinstance(count := getattr(data, "num_classes", None), int):
            return [str(i) for i in range(count)]
        return None if targets is None or int(targets.max()) < 0 else [str(i) for i in range(int(targets.max()) + 1)]


def _path_of(listed: Any) -> Any:
    return listed[0] if isinstance(listed, (tuple, list)) else listed


def _integer(target: Any) -> bool:
    if isinstance(target, (np.ndarray, Tensor)):
        return target.ndim == 0 and not (target.is_floating_point() if isinstance(target, Tensor) else False)
    return isinstance(target, (int, np.integer)) and not isinstance(target, bool)


def _targets(data: Any) -> Int64[Tensor, " n"] | None:
    """All targets, where the data set lists them as integers; QMNIST's rows begin with the class. The items of
    `_samples` are pairs of an image and its target; `y` is the category of Caltech's images.
    """
    for name in ("targets", "labels", "_labels", "y", "_samples"):
        listed = getattr(data, name, None)
        if listed is not None and len(listed) == len(data) and len(listed):
            if name == "_samples":
                if not all(isinstance(pair, tuple) and len(pair) == 2 and _integer(pair[1]) for pair in listed):
                    return None
                listed = [pair[1] for pair in listed]
            try:
                targets = torch.as_tensor(np.asarray(listed).astype(np.int64, casting="same_kind"))
            except (ValueError, TypeError):
                return None
            return targets[:, 0] if targets.ndim == 2 else targets if targets.ndim == 1 else None
    return None


class InMemory:
    """The whole split as one uint8 tensor."""

    in_memory = True

    def __init__(self, images: UInt8[Tensor, "n c h w"]):
        self.images = images
        channels, height, width = images.shape[1:]
        self.shape = (channels, height, width)

    def pixels(self, rows: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        return self.images.index_select(0, rows)  # rows are copied whole, not pixel by pixel


def _in_memory(source: Torchvision, targets: Int64[Tensor, " n"]) -> InMemory | None:
    """The split as one tensor where `data.data` is such an array, in a layout that a few rows confirm."""
    held = getattr(source.data, "data", None)
    if not isinstance(held, (np.ndarray, Tensor)) or len(held) != len(source) or not len(held):
        return None
    held = torch.as_tensor(held)
    if held.dtype != torch.uint8 or held.ndim not in (3, 4):
        return None
    probes = range(0, len(held), -(-len(held) // PROBES))
    for images in [held[:, None]] if held.ndim == 3 else [held, held.permute(0, 3, 1, 2)]:
        if images.shape[1] in (1, 3) and all(_agrees(source, row, images[row], int(targets[row])) for row in probes):
            return InMemory(images.contiguous())
    return None


def _agrees(source: Torchvision, row: int, pixels: Tensor, target: int) -> bool:
    image, found = source.item(row)
    shown = np.asarray(image)
    shown = shown[None] if shown.ndim == 2 else shown.transpose(2, 0, 1)
    same_label = source.classes is None or int(found) == target
    return same_label and shown.shape == pixels.shape and bool((shown == pixels.numpy()).all())
