"""The fast path of `smalti encode`: one thread prepares images and one writes shards while the network encodes."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.base.progress import progress
from pipelines.data import ImageBatch, ImageDataset, RowMetadata, Split, Unreadable, ordered_batches
from pipelines.models.token_spec import TokenSpec
from pipelines.tokens.shards import Shard, ShardContent, write_shard
from tokenizer import Autoencoder


@dataclass(frozen=True)
class Pass:
    """One forward pass: the images of consecutive rows of a shard, padded with black to the size of every pass."""

    shard: Shard
    images: Tensor
    metadata: list[RowMetadata]
    unreadable: list[Unreadable]
    last_of_shard: bool


def encode_shards(
    model: Autoencoder,
    datasets: Mapping[Split, ImageDataset],
    spec: TokenSpec,
    shards: list[Shard],
    output: Path,
    *,
    refuse_unreadable: bool = False,
    already: int = 0,
    visible: bool = True,
) -> float:
    """Encode and write `shards`; returns images per second. `already` rows of this process were done before this call.

    Codes stay on the device until their shard is whole, so a GPU is never waited for between passes.
    """
    rows = sum(len(shard.rows) for shard in shards)
    began = time.monotonic()
    passes = _passes(datasets, spec, shards, refuse_unreadable)
    codes: list[Tensor] = []
    metadata: list[RowMetadata] = []
    unreadable: list[Unreadable] = []
    with (
        progress(rows + already, "encode", unit="image", start=already, visible=visible) as meter,
        ThreadPoolExecutor(1, "write") as writer,
        torch.inference_mode(),
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        writing = writer.submit(lambda: None)
        for prepared in passes:
            codes.append(encode_pass(model, prepared.images)[: len(prepared.metadata)])
            metadata += prepared.metadata
            unreadable += prepared.unreadable
            meter.advance(len(prepared.metadata) + len(prepared.unreadable))
            if prepared.last_of_shard:
                content = _content(codes, metadata, unreadable, spec)
                writing.result()  # one shard at a time waits to be written; a failed write stops us here
                writing = writer.submit(write_shard, output, spec, prepared.shard, content)
                codes, metadata, unreadable = [], [], []
        writing.result()
    return rows / max(time.monotonic() - began, 1e-9) if rows else 0.0


def encode_pass(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes (b, h*w*q) of one pass of images, in 32 bits on the model's device."""
    device = next(model.parameters()).device
    found = model.encode(images.to(device, non_blocking=True)).codes
    assert found is not None  # build_spec refuses continuous tokenizers
    return found.flatten(1).to(torch.int32)


def _passes(
    datasets: Mapping[Split, ImageDataset], spec: TokenSpec, shards: list[Shard], refuse_unreadable: bool
) -> Iterator[Pass]:
    """Every pass of the shards. Images are dropped with their pass; keys, labels and texts wait for the shard's end."""
    size = spec.compute.batch
    for shard in shards:
        dataset = datasets[shard.split]
        starts = range(shard.rows.start, shard.rows.stop, size)
        batches = ordered_batches(dataset, shard.rows, size, keep_empty=True, keep_pixels=False)
        for start, batch in zip(starts, batches, strict=True):
            yield _pass(shard, batch, spec, refuse_unreadable, start + size >= shard.rows.stop)


def _pass(shard: Shard, batch: ImageBatch, spec: TokenSpec, refuse_unreadable: bool, last: bool) -> Pass:
    unreadable = [bad for _, bad in batch.unreadable]
    if unreadable and refuse_unreadable:
        raise UserError(f"data: {unreadable[0]}; data.on_unreadable: skip would leave it out")
    images = torch.zeros(spec.compute.batch, *batch.image.shape[1:], dtype=torch.uint8)
    images[: len(batch)] = batch.image
    return Pass(shard, images, batch.metadata, unreadable, last)


def _content(
    codes: list[Tensor], metadata: list[RowMetadata], unreadable: list[Unreadable], spec: TokenSpec
) -> ShardContent:
    return ShardContent(
        keys=[row.key for row in metadata],
        tokens=torch.cat(codes).cpu().numpy().astype(spec.dtype),
        labels=None if spec.classes is None else [-1 if row.label is None else row.label for row in metadata],
        texts=[row.text for row in metadata] if spec.has_text else None,
        skipped=[(row.key, row.reason) for row in unreadable],
    )
