"""Prepared pixels, kept from the time a row is first read, so that an image is decoded once.

They are kept in memory, or in a file that all processes of a machine share and that outlives them. Each row of the file
carries a checksum, which a process verifies when it first meets the row. So a row that is half written, by a process
that was killed or by a machine that lost power, is one that is not there, and no process has to wait for another:
whoever decodes a row writes the same bytes.
"""

import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from pipelines.base.memory_limits import machine_memory

FORMAT = "smalti-pixels/1"
MEMORY_SHARE = 4  # pixels take a quarter of the machine's memory at most
Shape = tuple[int, int, int]


class PixelCache:
    """Pixels (c, h, w) uint8 and labels (-1: none) of some of `length` rows, in memory or in the file `path`."""

    def __init__(self, length: int, shape: Shape, path: Path | None = None):
        self._arguments = (length, shape, path)
        self._record = record_type(shape)
        self._known = np.zeros(length, bool)
        if path is None:
            self._file = None
            self._records = np.zeros(length, self._record)  # memory is taken as rows are written
        else:
            self._file = _open_sparse(path, length * self._record.itemsize)
            self._records = np.memmap(path, self._record, "r", shape=(length,))

    def __reduce__(self) -> Any:
        return PixelCache, self._arguments

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # pyright: ignore[reportArgumentType]

    def known(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these rows are here."""
        if self._file is not None and not self._known[rows].all():
            for row, stored in self._stored(np.unique(rows[~self._known[rows]])):
                record = self._records[row]
                self._known[row] = stored == _checksum(row, int(record["label"]), record["pixels"])
        return self._known[rows]

    def _stored(self, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Those rows that have a checksum in the file, and the checksum."""
        checksums = self._records["checksum"][rows]
        written = checksums != 0
        return list(zip(rows[written].tolist(), checksums[written].tolist(), strict=True))

    def get(self, rows: NDArray[np.int64]) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " n"]]:
        """Pixels and labels of known rows."""
        labels = self._records["label"][rows].astype(np.int64)
        return torch.from_numpy(self._records["pixels"][rows]), torch.from_numpy(labels)

    def put(self, rows: Sequence[int], images: UInt8[Tensor, "n c h w"], labels: Sequence[int]) -> None:
        """Keep these rows. A full or failing disk is no error: the rows are decoded again when they are needed."""
        pixels = images.numpy()
        if self._file is None:
            self._records["pixels"][rows], self._records["label"][rows] = pixels, labels
            self._known[rows] = True
            return
        for row, picture, label in zip(rows, pixels, labels, strict=True):
            head = struct.pack("<Ii", _checksum(row, label, picture), label)
            try:
                # Written, not stored through the memory map: a full disk would kill the process there.
                written = os.pwrite(self._file, head + picture.tobytes(), row * self._record.itemsize)
            except OSError:
                return
            self._known[row] = written == self._record.itemsize


def record_type(shape: Shape) -> np.dtype:
    """What is kept of a row."""
    return np.dtype([("checksum", "<u4"), ("label", "<i4"), ("pixels", "u1", shape)])


def _checksum(row: int, label: int, pixels: NDArray[np.uint8]) -> int:
    """Never 0, which stands in the holes of the file."""
    return zlib.crc32(pixels.tobytes(), zlib.crc32(struct.pack("<qi", row, label))) or 1


def _open_sparse(path: Path, size: int) -> int:
    """A file of zeros that takes room on the disk as it is written, or the file that is already there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if os.fstat(file).st_size != size:
        os.truncate(file, size)
    os.utime(path)
    return file


_open_caches: WeakValueDictionary[str, PixelCache] = WeakValueDictionary()


def pixel_cache(
    identity: str | None, length: int, shape: Shape, memory_bytes: int, file_bytes: int, decoded: bool = True
) -> PixelCache | None:
    """A cache for `length` rows, shared by everybody in this process who asks for the same `identity`; None where it
    would exceed both budgets.

    `identity` names the images and how they are prepared (None: nothing does). A file is used above `memory_bytes`,
    and where a launcher started several processes on this machine, if there is an identity and the images are
    `decoded`, for drawing them again is cheaper. `memory_bytes`, at most a quarter of the machine's memory, is that of
    all these processes together. The file may be as large as `file_bytes` and half of the free disk.
    """
    size = length * record_type(shape).itemsize
    name = None
    if identity is not None:
        text = "\n".join([FORMAT, identity, str((length, shape)), *map(version, ("pillow", "torchvision"))])
        name = hashlib.sha256(text.encode()).hexdigest()
        if (found := _open_caches.get(name)) is not None:
            return found
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory_bytes = min(memory_bytes, machine_memory() // MEMORY_SHARE) // processes
    cache = None
    if name is not None and decoded and (size > memory_bytes or processes > 1) and size <= file_bytes:
        cache = _in_file(cache_folder() / f"{name}.pixels", length, shape, size, file_bytes)
    if cache is None and size <= memory_bytes:
        cache = PixelCache(length, shape)
    if cache is not None and name is not None:
        _open_caches[name] = cache
    return cache


def cache_folder() -> Path:
    """Where files of pixels lie; they may be deleted at any time. SMALTI_CACHE, or the user's cache folder."""
    if folder := os.environ.get("SMALTI_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smalti"


def _in_file(path: Path, length: int, shape: Shape, size: int, budget: int) -> PixelCache | None:
    """The cache in a file; None where the disk cannot hold it or the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_oldest(path, budget - size)
        if not path.exists() and size > shutil.disk_usage(path.parent).free // 2:
            return None
        return PixelCache(length, shape, path)
    except OSError:
        return None


def _remove_oldest(path: Path, budget: int) -> None:
    """Remove the files beside `path` that were opened longest ago, until the rest takes `budget` bytes at most."""
    others = sorted((file for file in path.parent.glob("*.pixels") if file != path), key=lambda f: f.stat().st_mtime)
    sizes = [file.stat().st_blocks * 512 for file in others]
    total = sum(sizes)
    for file, size in zip(others, sizes, strict=True):
        if total <= budget:
            return
        file.unlink(missing_ok=True)
        total -= size
