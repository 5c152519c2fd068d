"""Anything that `datasets.load_dataset` opens: a hub name, a folder of images, local Parquet."""

import json
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.data.caption_files import caption_beside
from pipelines.data.image_files import open_image
from pipelines.data.source import Factors, PixelArray, Reader, RowContent, RowMetadata, Split

SPELLINGS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
KEPT_OPEN = 2  # data sets that stay open in a process


class HuggingFaceConfig(BaseModel):
    """`load_dataset(path, name, data_files=…, data_dir=…, revision=…, **arguments)`, and which columns mean what.

    `path`: a name on the hub, a local folder, or a builder such as "parquet" or "imagefolder". `label`: a column of
    ClassLabels, integers or strings (their sorted distinct values become the classes); null, and -1 among ClassLabels,
    is a row without a label. Where it is not given, the classes of an image folder are its subfolders. `key`: names
    each image; without it the path of its file does, or the row number. `text`: a column of captions; for a folder of
    images on this machine, `caption_extension` (such as .txt) names files beside the images instead. `factor_columns`:
    ground-truth factors of variation; their sorted distinct values are numbered. `splits` says how the data spells a
    split ({test: eval}).
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
    caption_extension: str | None = Field(default=None, pattern=r"^\.[A-Za-z0-9_.-]*[A-Za-z0-9]$", max_length=32)
    key: str | None = None
    factor_columns: tuple[str, ...] = ()
    splits: dict[Split, str] = {}

    @model_validator(mode="after")
    def _captions_have_one_place(self) -> Self:
        if self.text is not None and self.caption_extension is not None:
            raise ValueError(f"found text {self.text!r} and caption_extension {self.caption_extension!r}, expected one")
        return self


class HuggingFaceSplits:
    """All splits of one data set; `find` picks one of them. A process loads each data set once.

    Raises:
        UserError: there is no such data set, column or split; the message lists what there is.
    """

    def __init__(self, config: HuggingFaceConfig, max_pixels: int):
        self.config, self.max_pixels = config, max_pixels
        self.splits = _load_once(config)
        for name in config.splits.values():
            if name not in self.splits:
                raise UserError(f"source.splits: {config.path} has no split {name!r}; it has {', '.join(self.splits)}")
        for name, split in self.splits.items():
            named = [(field, getattr(config, field)) for field in ("image", "label", "text", "key")]
            named += [("factor_columns", column) for column in config.factor_columns]
            for field, column in named:
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
    def label_column(self) -> str | None:
        """The column of labels: the recipe's, or that of an image folder with a subfolder for each class."""
        if self.config.label is not None:
            return self.config.label
        is_folder = all(split.info.builder_name == "imagefolder" for split in self.splits.values())
        has_names = all(hasattr(split.features.get("label"), "names") for split in self.splits.values())
        return "label" if is_folder and has_names else None

    @cached_property
    def labels(self) -> dict[Any, int] | None:
        """The class number of every value of the label column, over all splits."""
        column = self.label_column
        if column is None:
            return None
        values: set[Any] = set()
        for split in self.splits.values():
            feature = split.features[column]
            if (names := getattr(feature, "names", None)) is not None:
                return {i: i for i in range(len(names))}
            if not hasattr(feature, "dtype"):  # a list or a mapping, whose values cannot be compared
                values = set()
                break
            values |= set(split.unique(column)) - {None}
        if not values or not all(isinstance(v, (str, int)) for v in values) or len({type(v) for v in values}) > 1:
            kind = next(iter(self.splits.values())).features[column]
            raise UserError(
                f"source.label: column {column!r} must hold class labels, integers or strings, found {kind}"
            )
        return {value: i for i, value in enumerate(sorted(values))}

    @cached_property
    def factors(self) -> dict[str, dict[Any, int]]:
        """The number of every value of each factor column, over all splits."""
        found: dict[str, dict[Any, int]] = {}
        for column in self.config.factor_columns:
            kinds = [split.features[column] for split in self.splits.values()]
            values: set[Any] = {None}
            if all(hasattr(kind, "dtype") for kind in kinds):  # the values of a list or a mapping cannot be compared
                values = {value for split in self.splits.values() for value in split.unique(column)}
            if len({type(value) for value in values}) > 1 or not all(
                isinstance(value, (bool, int, float, str)) for value in values
            ):
                raise UserError(
                    f"source.factor_columns: column {column!r} must hold a number or a string in every row, found "
                    f"{kinds[0]}" + (", missing in some rows" if len(values) > 1 and None in values else "")
                )
            found[column] = {value: number for number, value in enumerate(sorted(values))}
        return found

    @cached_property
    def classes(self) -> list[str] | None:
        if self.labels is None:
            return None
        names = getattr(next(iter(self.splits.values())).features[self.label_column], "names", None)
        return list(names) if names is not None else [str(value) for value in self.labels]


_loaded: OrderedDict[str, Any] = OrderedDict()


def _load_once(config: HuggingFaceConfig) -> Any:
    """The data set, loaded by the first call for it in this process. A local file that has changed is loaded again."""
    files = config.data_files if isinstance(config.data_files, str) else None
    places = [place for place in (config.path, config.data_dir, files) if place and os.path.exists(place)]
    times = [(place, os.stat(place).st_mtime_ns) for place in places]
    identity = json.dumps([config.model_dump(mode="json", exclude={"splits"}), times, os.getcwd()], default=str)
    if identity not in _loaded:
        _loaded[identity] = _load(config)
    _loaded.move_to_end(identity)
    while len(_loaded) > KEPT_OPEN:
        _loaded.popitem(last=False)
    return _loaded[identity]


def _load(config: HuggingFaceConfig) -> Any:
    # Imported here because it is slow to import, and most commands never need it.
    from datasets import Dataset, DatasetDict, load_dataset

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
        shown = ", ".join(f"{name}=…" if name in config.arguments else f"{name}={v!r}" for name, v in arguments.items())
        raise UserError(f"source: load_dataset({path!r}{', ' if shown else ''}{shown}) failed: {error}") from error
    if isinstance(data, Dataset):
        data = DatasetDict({"train": data})
    for name, split in data.items():
        if config.image in split.column_names:
            data[name] = _undecoded(split, config.image)
    return data


def _undecoded(split: Any, column: str) -> Any:
    """The split with images as bytes or paths, so that a broken file is one unreadable row.

    Raises:
        UserError: the column holds no images.
    """
    from datasets import Image as ImageFeature

    kind = split.features[column]
    if getattr(kind, "dtype", None) == "string" and len(split):
        value = next((value for value in split[:100][column] if value), "")
        if value.startswith(("http://", "https://")):
            raise UserError(
                f"source.image: column {column!r} holds addresses ({urlsplit(value).hostname}), not images; "
                "download the images first"
            )
    try:
        return split.cast_column(column, ImageFeature(decode=False))
    except Exception as error:
        raise UserError(f"source.image: column {column!r} holds no images, found {kind}") from error


class HuggingFace:
    """One split. Rows are fetched many at a time, with the needed columns only."""

    def __init__(self, splits: HuggingFaceSplits, split: str):
        config = self.config = splits.config
        self.max_pixels, self.split = splits.max_pixels, split
        data = splits.splits[split]
        self.label_column, self.classes, self.numbers = splits.label_column, splits.classes, splits.labels
        if self.numbers is not None and not set(data.unique(self.label_column)) & self.numbers.keys():
            self.label_column = self.classes = self.numbers = None  # a test split whose labels are withheld
        self.has_text = config.text is not None or config.caption_extension is not None
        self.factor_values = splits.factors
        self.array: PixelArray | None = None
        meaning = [config.image, self.label_column, self.classes, self.max_pixels]
        self.fingerprint: str | None = f"{data._fingerprint} {json.dumps(meaning)}"
        self.data = data.with_format("arrow")
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

    def metadata(self, rows: Sequence[int], labels: Int64[Tensor, " n"] | None = None) -> list[RowMetadata]:
        text, key = self.config.text, self.config.key
        columns = [name for name in (key, text, *self.factor_values) if name is not None]
        found = self._columns(rows, columns)
        labels = self.labels(rows) if labels is None else labels
        numbers = [None] * len(rows) if labels is None else [n if n >= 0 else None for n in labels.tolist()]
        texts = self._captions(rows) if text is None else [None if v is None else str(v) for v in found[text]]
        keys = [None] * len(rows) if key is None else [None if v is None else str(v) for v in found[key]]
        if None in keys:
            files = self._paths(rows)
            keys = [k or self._key(row, file) for k, row, file in zip(keys, rows, files, strict=True)]
        known = [{column: found[column][place] for column in self.factor_values} or None for place in range(len(rows))]
        return [RowMetadata(str(k), n, t, f) for k, n, t, f in zip(keys, numbers, texts, known, strict=True)]

    def _captions(self, rows: Sequence[int]) -> list[str | None]:
        """The captions in files beside the images, where the recipe says that there are such."""
        extension = self.config.caption_extension
        if extension is None:
            return [None] * len(rows)
        return [caption_beside(path, extension) for path in self._paths(rows)]

    def labels(self, rows: Sequence[int]) -> Int64[Tensor, " n"] | None:
        if self.numbers is None or self.label_column is None:
            return None
        values = self._columns(rows, [self.label_column])[self.label_column]
        return torch.tensor([self.numbers.get(value, -1) for value in values], dtype=torch.int64)

    def factors(self, rows: Sequence[int]) -> Factors | None:
        numbers = self.factor_values
        if not numbers:
            return None
        columns = self._columns(rows, list(numbers))
        values = [[numbers[name][value] for value in columns[name]] for name in numbers]
        sizes = tuple(len(found) for found in numbers.values())
        return Factors(tuple(numbers), sizes, np.array(values, dtype=np.int64).T)

    def contents(self, rows: Sequence[int]) -> list[RowContent]:
        stored = self._columns(rows, [self.config.image])[self.config.image]
        pictures = [None if value is None else value["bytes"] or value["path"] for value in stored]
        known = zip(self.metadata(rows), pictures, strict=True)
        return [RowContent([row.key, row.label, row.text], picture) for row, picture in known]

    def readers(self, rows: Sequence[int]) -> list[Reader]:
        stored = self._columns(rows, [self.config.image])[self.config.image]
        return [partial(_open, value, self.max_pixels) for value in stored]

    def _columns(self, rows: Sequence[int], names: list[str]) -> dict[str, list[Any]]:
        """Values of some columns in these rows."""
        if not names or not len(rows):
            return {name: [] for name in names}
        table = self._table(rows)
        return {name: table.column(name).to_pylist() for name in names}

    def _table(self, rows: Sequence[int]) -> Any:
        """These rows as an Arrow table. Consecutive ones are a view: columns that nobody reads are not touched."""
        first, last = rows[0], rows[-1]
        consecutive = last - first == len(rows) - 1 and all(row == first + i for i, row in enumerate(rows))
        return self.data[slice(first, last + 1) if consecutive else list(rows)]

    def _paths(self, rows: Sequence[int]) -> list[str | None]:
        """The file of each image, None where its bytes stand in the data set itself."""
        if not len(rows):
            return []
        column = self._table(rows).column(self.config.image).combine_chunks()
        embedded = column.field("bytes").is_valid().to_pylist()
        return [
            None if inside else path for inside, path in zip(embedded, column.field("path").to_pylist(), strict=True)
        ]

    def _key(self, row: int, path: str | None) -> str:
        return (path and relative_key(path, self._roots)) or f"{self.split}-{row:08d}"

    @cached_property
    def _roots(self) -> list[str]:
        """Folders that the data set was loaded from."""
        config = self.config
        files = config.data_files if isinstance(config.data_files, dict) else {"": config.data_files or []}
        listed = [name for part in files.values() for name in ([part] if isinstance(part, str) else part)]
        folders = [folder for folder in (config.data_dir, config.arguments.get("data_dir"), config.path) if folder]
        folders = [os.path.expanduser(folder) for folder in folders]
        folders = [folder for folder in folders if os.path.isdir(folder)]
        folders += [os.path.dirname(re.split(r"[*?\[]", name)[0]) for name in listed if "://" not in name]
        return [resolved(folder) for folder in folders for resolved in (os.path.abspath, os.path.realpath)]


def relative_key(path: str, roots: Sequence[str]) -> str | None:
    """A name for an image from where its file lies: never an absolute path, no host's password, no query.

    None where the file lies in none of the `roots` (absolute paths of folders).
    """
    if "://" in path:  # inside an archive, or on the hub
        parts = urlsplit(path.split("::")[0])
        return f"{parts.netloc.rpartition('@')[2]}{parts.path}".strip("/") or None
    whole = os.path.abspath(path)
    for root in roots:
        if whole.startswith(folder := root.rstrip(os.sep) + os.sep):
            return whole[len(folder) :].replace(os.sep, "/")
    _, extracted, inside = whole.replace(os.sep, "/").rpartition("/downloads/extracted/")
    return inside if extracted else None


def _open(stored: dict[str, Any] | None, max_pixels: int) -> Image.Image:
    if stored is None or (stored["bytes"] is None and stored["path"] is None):
        raise ValueError("the row holds no image")
    if stored["bytes"] is not None:
        return open_image(stored["bytes"], max_pixels)
    if "://" in stored["path"]:  # inside an archive, or on the hub
        import fsspec

        with fsspec.open(stored["path"], "rb") as file:
            return open_image(file.read(), max_pixels)  # pyright: ignore[reportAttributeAccessIssue]
    return open_image(os.fspath(stored["path"]), max_pixels)
