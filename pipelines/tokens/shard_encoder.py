"""The fast path of `smalti encode`: threads prepare images, and encode them where that is quicker; one thread writes.

On a CPU every thread takes whole passes, from reading the images to their codes, with one core each: two passes side by
side are quicker than one pass whose layers are divided between two cores, and codes do not depend on the number of
cores. Elsewhere the threads only read, and the device is kept busy by the caller.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.progress import progress
from pipelines.data import ImageDataset, Split
from pipelines.models.token_spec import TokenSpec
from pipelines.tokens.shards import Shard, token_table, write_shard
from tokenizer import Autoencoder

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_THREADS = 32
ROWS_ON_DEVICE = 8192  # codes that wait on the device before they are fetched: it is stopped once for so many rows


@dataclass(frozen=True)
class PaddedBatch:
    """One forward pass: the images of consecutive rows of a shard, padded with black to the size of every pass.

    Keys, labels (-1: none) and texts are those of the readable rows, in order.
    """

    shard: Shard
    last_of_shard: bool
    images: Tensor
    keys: list[str]
    labels: list[int]
    texts: list[str | None]
    unreadable: list[tuple[str, str]]


class ShardInProgress:
    """What waits for the end of a shard: everything of its rows but the pixels, in arrays."""

    def __init__(self, spec: TokenSpec):
        self.spec = spec
        self.skipped: list[tuple[str, str]] = []
        self._parts: list[pa.Table] = []
        self._waiting: list[tuple[PaddedBatch, Tensor]] = []

    def add(self, batch: PaddedBatch, codes: Tensor) -> None:
        """`codes` (rows of the pass, h*w*q) on any device."""
        self._waiting.append((batch, codes[: len(batch.keys)]))
        self.skipped += batch.unreadable
        if sum(len(waiting.keys) for waiting, _ in self._waiting) >= ROWS_ON_DEVICE:
            self._collect()

    def rows(self) -> pa.Table:
        self._collect()
        return pa.concat_tables(self._parts)

    def _collect(self) -> None:
        if not self._waiting:
            return
        batches = [batch for batch, _ in self._waiting]
        tokens = torch.cat([codes for _, codes in self._waiting]).cpu().numpy().astype(self.spec.dtype)
        keys, labels, texts = (
            list(chain.from_iterable(getattr(batch, name) for batch in batches)) for name in ("keys", "labels", "texts")
        )
        self._parts.append(token_table(self.spec, keys, tokens, labels, texts))
        self._waiting = []


@dataclass(frozen=True)
class PassReader:
    """Reads passes of `size` images. UserError for an image that cannot be read, where these are to be refused."""

    datasets: Mapping[Split, ImageDataset]
    size: int
    refuse_unreadable: bool = False

    def __call__(self, shard: Shard, rows: range) -> PaddedBatch:
        batch = self.datasets[shard.split].read_batch(rows, keep=False)  # every row is read once
        unreadable = [bad for _, bad in batch.unreadable]
        if unreadable and self.refuse_unreadable:
            raise UserError(f"data: {unreadable[0]}; data.on_unreadable: skip would leave it out")
        images = torch.zeros(self.size, *batch.image.shape[1:], dtype=torch.uint8)
        images[: len(batch)] = batch.image
        return PaddedBatch(
            shard=shard,
            last_of_shard=rows.stop == shard.rows.stop,
            images=images,
            keys=[row.key for row in batch.metadata],
            labels=[-1 if row.label is None else row.label for row in batch.metadata],
            texts=[row.text for row in batch.metadata],
            unreadable=[(bad.key, bad.reason) for bad in unreadable],
        )


def passes_ahead(batch_size: int, compute_batch: int) -> int:
    """How many passes are prepared ahead so that about `batch_size` images wait; at least one."""
    if batch_size < 1:
        raise UserError(f"batch_size: found {batch_size}, expected 1 or more")
    return max(1, batch_size // compute_batch)


def encode_shards(
    model: Autoencoder,
    read: PassReader,
    spec: TokenSpec,
    shards: list[Shard],
    output: Path,
    ahead: int = 1,
    done: int = 0,
    visible: bool = True,
) -> float:
    """Encode and write `shards`; returns images per second. `done` rows of this process were finished before."""
    rows = sum(len(shard.rows) for shard in shards)
    began = time.monotonic()
    current = ShardInProgress(spec)
    with (
        progress(rows + done, "encode", unit="image", start=done, visible=visible) as meter,
        ThreadPoolExecutor(1, "write") as writer,
    ):
        writing = writer.submit(lambda: None)
        for batch, codes in encoded_passes(model, read, passes_of(shards, read.size), ahead):
            current.add(batch, codes)
            meter.advance(len(batch.keys) + len(batch.unreadable))
            if batch.last_of_shard:
                writing.result()  # one shard at a time waits to be written; a failed write stops the encoding here
                writing = writer.submit(write_shard, output, spec, batch.shard, current.rows(), current.skipped)
                current = ShardInProgress(spec)
        writing.result()
    return rows / max(time.monotonic() - began, 1e-9) if rows else 0.0


def passes_of(shards: Iterable[Shard], size: int) -> Iterator[tuple[Shard, range]]:
    """Every pass of the shards: at most `size` consecutive rows of one shard."""
    for shard in shards:
        for start in range(shard.rows.start, shard.rows.stop, size):
            yield shard, range(start, min(start + size, shard.rows.stop))


def encoded_passes(
    model: Autoencoder, read: PassReader, passes: Iterable[tuple[Shard, range]], ahead: int = 1
) -> Iterator[tuple[PaddedBatch, Tensor]]:
    """The passes in order with their codes (rows of a pass, h*w*q); images of a pass are dropped at once."""
    threads = min(MOST_THREADS, torch.get_num_threads())
    on_cpu = next(model.parameters()).device.type == "cpu"

    def encoded(batch: PaddedBatch) -> tuple[PaddedBatch, Tensor]:
        codes = encode_pass(model, batch.images)
        return replace(batch, images=torch.empty(0, dtype=torch.uint8)), codes  # a view would keep the pixels

    with one_core_a_thread():
        if on_cpu:
            yield from in_order(lambda job: encoded(read(*job)), passes, threads, max(ahead, threads))
        else:
            yield from map(encoded, in_order(lambda job: read(*job), passes, threads, max(ahead, threads)))


@torch.inference_mode()
def encode_pass(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes (b, h*w*q) of one pass of images, in 32 bits on the model's device; full float32 precision on a GPU."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        images = images.pin_memory().to(device, non_blocking=True)
        with full_float32():
            found = model.encode(images).codes
    else:
        found = model.encode(images.to(device)).codes
    assert found is not None  # a spec is never built for a continuous tokenizer
    return found.flatten(1).to(torch.int32)


def full_float32() -> AbstractContextManager[None]:
    """cuDNN without TF32, and with algorithms that give the same bits each time."""
    enabled = torch.backends.cudnn.enabled  # the default of `flags` would switch cuDNN off
    return torch.backends.cudnn.flags(enabled=enabled, benchmark=False, deterministic=True, allow_tf32=False)


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """`work` of each item, in order, by `threads` threads that are at most `ahead` items ahead of the caller."""
    items, end = iter(items), object()
    with ThreadPoolExecutor(threads, "encode", initializer=_use_one_core) as pool:
        running = deque(pool.submit(work, item) for item in islice(items, ahead))
        try:
            while running:
                result = running.popleft().result()
                if (item := next(items, end)) is not end:
                    running.append(pool.submit(work, item))  # type: ignore[arg-type]
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_core_a_thread() -> Iterator[None]:
    """Within this context an operation of torch uses one core. The number is a setting of the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _use_one_core() -> None:
    torch.set_num_threads(1)
