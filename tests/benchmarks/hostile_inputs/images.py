"""Images and tables of images that cannot be read."""

import io
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
from PIL import Image
from pyarrow import parquet

from tests.benchmarks.hostile_inputs.case import Case
from tests.benchmarks.hostile_inputs.fixture import write


def whole_png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its pixels do not have."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


BROKEN_IMAGES = {
    "empty": b"",
    "text": b"hello",
    "a bomb": png(60_000, 60_000),
    "the largest header": png(2**31 - 1, 2**31 - 1),
    "no size": png(0, 0),
    "cut short": png(32, 32)[:60],
    "too few pixels": png(32, 32),
    "a pickle": b"\x80\x04\x95",
}


FOLDER = "data.source={kind: huggingface, path: imagefolder, data_dir: broken}"
TABLE = "data.source={kind: huggingface, path: parquet, data_files: table.parquet%s}"
TABLES: tuple[tuple[str, dict[str, list[Any]], str], ...] = (
    ("addresses as images", {"image": ["https://nowhere.invalid/a.png"] * 20}, ""),
    ("numbers as images", {"image": list(range(20))}, ""),
    ("empty", {"image": []}, ""),
    ("no image column", {"cake": [b""] * 20}, ""),
    ("empty bytes", {"image": [b""] * 20}, ""),
    ("nulls", {"image": [None] * 20}, ""),
    ("lists as labels", {"image": [b"x"] * 20, "label": [[1]] * 20}, ", label: label"),
    ("no such key", {"image": [b"x"] * 20}, ", key: cake"),
    ("no such split", {"image": [b"x"] * 20}, ", splits: {test: cake}"),
)


def write_images(folder: str, number: int, broken: bytes | None = None) -> None:
    """`number` images, whole ones, or files that all hold `broken`."""
    for i in range(number):
        path = Path(folder) / f"{'whole' if broken is None else 'broken'}-{i}.png"
        write(path, whole_png(i) if broken is None else broken)


def some_broken(content: bytes) -> None:
    write_images("broken/train", 8, content)
    write_images("broken/train", 20)


def validation_broken() -> None:
    write_images("broken/train", 12)
    write_images("broken/validation", 12, b"broken")


def broken_images() -> Iterator[Case]:
    train = ["train", "tokenizer.yaml", FOLDER]
    for name, content in BROKEN_IMAGES.items():
        yield Case("image", f"all {name}", train, partial(write_images, "broken/train", 8, content))
        refused = [*train, "data.on_unreadable=refuse"]
        yield Case("image", f"refused: {name}", refused, partial(some_broken, content))
    yield Case("image", "all of validation broken", train, validation_broken)


def write_table(columns: dict[str, list[Any]]) -> None:
    parquet.write_table(pyarrow.table(columns), "table.parquet")


def broken_tables() -> Iterator[Case]:
    for name, columns, options in TABLES:
        yield Case("data set", name, ["train", "tokenizer.yaml", TABLE % options], partial(write_table, columns))
    no_parquet = partial(write, "table.parquet", b"PAR1" + b"x" * 1000 + b"PAR1")
    yield Case("data set", "no parquet", ["train", "tokenizer.yaml", TABLE % ""], no_parquet)
