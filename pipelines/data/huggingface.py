"""Anything that `datasets.load_dataset` opens: a hub name, a folder of images, local Parquet."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import fsspec
from PIL import Image
from pydantic import BaseModel, ConfigDict

from pipelines.base.errors import UserError
from pipelines.data.dataset import Facts, FastPath, Split
from pipelines.data.image_files import decode

SPELLINGS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


class HuggingFaceConfig(BaseModel):
    """`load_dataset(path, name, data_files=…, data_dir=…, revision=…, **arguments)`, and which columns mean what.

    `path`: a name on the hub, a local folder, or a builder such as "parquet" or "imagefolder". `label`: a column of
    ClassLabels, integers or strings (their sorted distinct values become the classes). `key`: names each image; without
    it the path of its file does, or the row number. `splits` says how the data spells a split ({test: eval}).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["huggingface"] = "huggingface"
    path: str
    name: str | None = None
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    data_dir: str | None = None
    revision: str | None = None
    arguments: dict[str, Any] = {}
    image: str = "image"
    label: str | None = None
    text: str | None = None
    key: str | None = None
    splits: dict[Split, str] = {}


class Opened:
    """All splits of one data set; `find` picks one of them.

    Raises:
        UserError: there is no such data set, column or split; the message lists what there is.
    """

    def __init__(self, config: HuggingFaceConfig, max_pixels: int):
        self.config, self.max_pixels = config, max_pixels
        self.splits = _load(config)
        for name in config.splits.values():
            if name not in self.splits:
                raise UserError(f"source.splits: {config.path} has no split {name!r}; it has {', '.join(self.splits)}")
        for name, split in self.splits.items():
            for field in ("image", "label", "text", "key"):
                column = getattr(config, field)
                if column is not None and column not in split.column_names:
                    columns = ", ".join(split.column_names)
                    raise UserError(
                        f"source.{field}: {config.path} ({name}) has no column {column!r}; it has {columns}"
                    )

    def find(self, split: Split) -> "HuggingFace | None":
        names = (self.config.splits[split],) if split in self.config.splits else SPELLINGS[split]
        taken = set(self.config.splits.values()) if split not in self.config.splits else set()
        for name in names:
            if name in self.splits and name not in taken:
                return HuggingFace(self, name)
        if split == "train":
            found = ", ".join(self.splits)
            raise UserError(
                f"{self.config.path} has no split 'train'; it has {found} (name one in source.splits: train)"
            )
        return None

    @cached_property
    def labels(self) -> dict[Any, int] | None:
        """The class number of every value of the label column, over all splits."""
        column = self.config.label
        if column is None:
            return None
        values: set[Any] = set()
        for split in self.splits.values():
            feature = split.features[column]
            if (names := getattr(feature, "names", None)) is not None:
                return {i: i for i in range(len(names))}
            values |= set(split.unique(column)) - {None}
        if not values or not all(isinstance(v, (str, int)) for v in values) or len({type(v) for v in values}) > 1:
            kind = next(iter(self.splits.values())).features[column]
            raise UserError(
                f"source.label: column {column!r} must hold class labels, integers or strings, found {kind}"
            )
        return {value: i for i, value in enumerate(sorted(values))}

    @property
    def classes(self) -> list[str] | None:
        if self.labels is None:
            return None
        names = getattr(next(iter(self.splits.values())).features[self.config.label], "names", None)
        return list(names) if names is not None else [str(value) for value in self.labels]


def _load(config: HuggingFaceConfig) -> Any:
    # Imported here because it is slow to import, and most commands never need it.
    from datasets import Dataset, DatasetDict, load_dataset
    from datasets import Image as ImageFeature

    if config.path.startswith((".", "/", "~")) and not Path(config.path).expanduser().is_dir():
        raise UserError(f"source.path: there is no folder {config.path}")
    if config.arguments.get("streaming"):
        raise UserError("source.arguments: streaming has no row numbers to resume from; leave it out")
    named = {"name": config.name, "data_files": config.data_files, "data_dir": config.data_dir}
    arguments = {k: v for k, v in {**named, "revision": config.revision}.items() if v is not None} | config.arguments
    path = str(Path(config.path).expanduser()) if config.path.startswith("~") else config.path
    try:
        data = load_dataset(path, **arguments)
    except Exception as error:  # load_dataset's errors have no common ancestor
        shown = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
        raise UserError(f"source: load_dataset({path!r}{', ' if shown else ''}{shown}) failed: {error}") from error
    if isinstance(data, Dataset):
        data = DatasetDict({"train": data})
    for name, split in data.items():
        if config.image in split.column_names:
            try:  # undecoded, so that a broken file is one unreadable row
                data[name] = split.cast_column(config.image, ImageFeature(decode=False))
            except Exception as error:
                kind = split.features[config.image]
                raise UserError(f"source.image: column {config.image!r} holds no images, found {kind}") from error
    return data


class HuggingFace:
    """One split. Reading decodes the image from its bytes or its file."""

    fast: FastPath | None = None

    def __init__(self, opened: Opened, split: str):
        self.config, self.max_pixels, self.split = opened.config, opened.max_pixels, split
        self.data = opened.splits[split]
        self.classes, self.numbers = opened.classes, opened.labels
        if self.numbers is not None and not set(self.data.unique(self.config.label)) & self.numbers.keys():
            self.classes = self.numbers = None  # a test split whose labels are withheld
        config = self.config
        given = {"name": config.name, "data_files": config.data_files, "data_dir": config.data_dir}
        self.provenance: dict[str, Any] = {
            "kind": "huggingface",
            "path": config.path,
            **{key: value for key, value in given.items() if value is not None},
            "revision": config.revision,
            "split": split,
        }

    def __len__(self) -> int:
        return len(self.data)

    def key(self, row: int) -> str:
        wanted = [self.config.image] if self.config.key is None else [self.config.key]
        return self._key(row, self.data.select_columns(wanted)[row])

    def _key(self, row: int, record: dict[str, Any]) -> str:
        if self.config.key is not None and record[self.config.key] is not None:
            return str(record[self.config.key])
        stored = record.get(self.config.image) or {}
        if stored.get("bytes") is None and stored.get("path") is not None:  # a file of its own
            return self._relative(stored["path"])
        return f"{self.split}-{row:08d}"

    def _relative(self, path: str) -> str:
        for folder in (self.config.data_dir, self.config.path):
            if folder and Path(folder).is_dir() and Path(path).is_relative_to(Path(folder).resolve()):
                return str(Path(path).relative_to(Path(folder).resolve()))
        return path

    def read(self, row: int) -> tuple[Image.Image, Facts]:
        config, record = self.config, self.data[row]
        key = self._key(row, record)
        label = None
        if self.numbers is not None:
            label = self.numbers.get(record[config.label])
            if label is None:
                raise ValueError(f"label {record[config.label]!r} is none of the {len(self.numbers)} classes")
        text = record[config.text] if config.text is not None else None
        return self._image(record[config.image]), Facts(key, label, None if text is None else str(text))

    def _image(self, stored: dict[str, Any] | None) -> Image.Image:
        if stored is None or (stored["bytes"] is None and stored["path"] is None):
            raise ValueError("the row holds no image")
        if stored["bytes"] is not None:
            return decode(stored["bytes"], self.max_pixels)
        if "://" in stored["path"]:  # inside an archive, or on the hub
            with fsspec.open(stored["path"], "rb") as file:
                return decode(file.read(), self.max_pixels)  # pyright: ignore[reportAttributeAccessIssue]
        return decode(os.fspath(stored["path"]), self.max_pixels)
