"""The fast path of `smalti encode`: one thread prepares images and one writes shards while the network encodes."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipelines.base.errors import UserError
from pipelines.base.progress import progress
from pipelines.data import Example, ImageDataset, Split, Unreadable
from pipelines.models.token_spec import TokenSpec
from pipelines.tokens.shards import Shard, ShardContent, write_shard
from tokenizer import Autoencoder

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pass:
    """One forward pass: the images of consecutive rows of a shard, padded with black to the size of every pass."""

    shard: Shard
    images: Tensor
    examples: list[Example]
    unreadable: list[Unreadable]
    last_of_shard: bool


def passes_of(batch_size: int, compute_batch: int) -> int:
    """How many passes are prepared ahead so that about `batch_size` images wait; one at least, or nothing overlaps."""
    if batch_size < 1:
        raise UserError(f"batch_size: found {batch_size}, expected 1 or more")
    return max(1, batch_size // compute_batch)


def encode_shards(
    model: Autoencoder,
    datasets: Mapping[Split, ImageDataset],
    spec: TokenSpec,
    shards: list[Shard],
    output: Path,
    *,
    ahead: int,
    refuse_unreadable: bool = False,
    workers: int = 0,
    already: int = 0,
    visible: bool = True,
) -> float:
    """Encode and write `shards`; returns images per second. `already` rows of this process were done before this call.

    Codes stay on the device until their shard is whole, so a GPU is never waited for between passes.
    """
    rows = sum(len(shard.rows) for shard in shards)
    began = time.monotonic()
    passes = _passes(datasets, spec, shards, refuse_unreadable, workers)
    # Rows that are a gather away are read in between: on a CPU a second busy thread stalls the network's own threads.
    instant = all(dataset.is_fast for dataset in datasets.values())
    codes: list[Tensor] = []
    examples: list[Example] = []
    unreadable: list[Unreadable] = []
    with (
        progress(rows + already, "encode", unit="image", start=already, visible=visible) as meter,
        ThreadPoolExecutor(1, "write") as writer,
        torch.inference_mode(),
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        writing = writer.submit(lambda: None)
        for prepared in passes if instant else ahead_of(passes, ahead):
            codes.append(encode_pass(model, prepared.images)[: len(prepared.examples)])
            examples += prepared.examples
            unreadable += prepared.unreadable
            meter.advance(len(prepared.examples) + len(prepared.unreadable))
            if prepared.last_of_shard:
                content = _content(codes, examples, unreadable, spec)
                writing.result()  # one shard at a time waits to be written; a failed write stops us here
                writing = writer.submit(write_shard, output, spec, prepared.shard, content)
                codes, examples, unreadable = [], [], []
        writing.result()
    return rows / max(time.monotonic() - began, 1e-9) if rows else 0.0


def encode_pass(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes (b, h*w*q) of one pass of images, in 32 bits on the model's device."""
    device = next(model.parameters()).device
    found = model.encode(images.to(device, non_blocking=True)).codes
    assert found is not None  # build_spec refuses continuous tokenizers
    return found.flatten(1).to(torch.int32)


def ahead_of(items: Iterator[Item], ahead: int) -> Iterator[Item]:
    """The items in order, up to `ahead` of them made by a thread while the caller works on the one before."""
    end = object()
    with ThreadPoolExecutor(1, "read") as pool:
        running = deque(pool.submit(next, items, end) for _ in range(ahead))
        while (item := running.popleft().result()) is not end:
            running.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]


def _passes(
    datasets: Mapping[Split, ImageDataset], spec: TokenSpec, shards: list[Shard], refuse_unreadable: bool, workers: int
) -> Iterator[Pass]:
    """Every pass of the shards; read here, or by `workers` processes where decoding costs more than encoding."""
    size = spec.compute.batch
    for _, group in groupby(shards, key=lambda shard: shard.split):
        jobs = [
            (shard, range(start, min(start + size, shard.rows.stop)))
            for shard in group
            for start in range(shard.rows.start, shard.rows.stop, size)
        ]
        rows = [list(rows) for _, rows in jobs]
        loader = DataLoader(
            datasets[jobs[0][0].split],
            batch_sampler=rows,
            num_workers=workers,
            collate_fn=list,
            generator=torch.Generator(),  # or it would draw on the global stream
        )
        for (shard, planned), found in zip(jobs, loader, strict=True):
            yield _pass(shard, planned, found, spec, refuse_unreadable)


def _pass(
    shard: Shard, rows: range, found: list[Example | Unreadable], spec: TokenSpec, refuse_unreadable: bool
) -> Pass:
    examples = [row for row in found if isinstance(row, Example)]
    unreadable = [row for row in found if isinstance(row, Unreadable)]
    if unreadable and refuse_unreadable:
        raise UserError(f"data: {unreadable[0]}; data.on_unreadable: skip would leave it out")
    side, channels = spec.preprocess.size, spec.preprocess.channels
    images = torch.zeros(spec.compute.batch, channels, side, side, dtype=torch.uint8)
    if examples:
        torch.stack([example.image for example in examples], out=images[: len(examples)])
    return Pass(shard, images, examples, unreadable, last_of_shard=rows.stop == shard.rows.stop)


def _content(
    codes: list[Tensor], examples: list[Example], unreadable: list[Unreadable], spec: TokenSpec
) -> ShardContent:
    return ShardContent(
        keys=[example.key for example in examples],
        tokens=torch.cat(codes).cpu().numpy().astype(spec.dtype),
        labels=None if spec.classes is None else [-1 if e.label is None else e.label for e in examples],
        texts=[example.text for example in examples] if spec.has_text else None,
        skipped=[(row.key, row.reason) for row in unreadable],
    )
