"""The fast path of encoding: ordered, one core a pass, and nothing kept but what a shard needs."""

import threading
import time

import numpy as np
import pytest
import torch

from pipelines.data import open_images
from pipelines.models.checkpoint import load_tokenizer
from pipelines.tokens.encoding_spec import compute_batch
from pipelines.tokens.shard_encoder import PassReader, encode_pass, encoded_passes, full_float32, in_order, passes_of
from pipelines.tokens.shards import plan_shards


@pytest.fixture
def passes(make_data):
    images = open_images(make_data(train=300), "train")
    return PassReader({"train": images}, 64), passes_of(plan_shards("train", 300, 2), 64)


def test_passes_cover_the_rows_of_each_shard_in_order():
    found = [(shard.index, *rows) for shard, rows in passes_of(plan_shards("train", 300, 2), 64)]
    assert [row for _, *rows in found for row in rows] == list(range(300))
    assert [len(rows) for _, *rows in found] == [64, 64, 22] * 2
    assert [index for index, *_ in found] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("threads", [1, 3])
def test_results_keep_the_order_of_their_items_whatever_finishes_first(threads):
    def slow_start(item):
        time.sleep(0.02 if item % 5 == 0 else 0)
        return item

    assert list(in_order(slow_start, range(23), threads, 4)) == list(range(23))


def test_threads_run_no_farther_ahead_than_asked():
    started = []
    results = in_order(started.append, iter(range(100)), threads=2, ahead=3)
    for done in range(1, 20):
        next(results)
        assert len(started) <= done + 3


def test_an_error_of_a_thread_is_raised_in_its_turn():
    def broken(item):
        if item == 7:
            raise ValueError("seven")
        return item

    results = in_order(broken, range(100), 2, 4)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ValueError, match="seven"):
        next(results)


def test_pixels_are_dropped_with_their_pass(passes, tiny_tokenizer):
    """Images are not kept until their shard ends."""
    model = load_tokenizer(tiny_tokenizer).model
    for batch, _ in encoded_passes(model, *passes):
        assert batch.images.untyped_storage().nbytes() == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_codes_do_not_depend_on_the_number_of_cores(passes, tiny_tokenizer, threads):
    model, before = load_tokenizer(tiny_tokenizer).model, torch.get_num_threads()
    images, seen = open_images_of(passes), []
    torch.set_num_threads(threads)
    try:
        for batch, codes in encoded_passes(model, *passes):
            seen.append(codes[: len(batch.keys)])
        assert torch.get_num_threads() == threads
        torch.set_num_threads(1)
        expected = encode_pass(model, images.read_batch(range(64)).image)
    finally:
        torch.set_num_threads(before)
    assert len(torch.cat(seen)) == 300
    torch.testing.assert_close(seen[0], expected)


def open_images_of(passes):
    return passes[0].datasets["train"]


def test_every_pass_uses_one_core_and_leaves_cudnn_on(passes, tiny_tokenizer, monkeypatch):
    """The network once ran with cuDNN switched off."""
    model, seen = load_tokenizer(tiny_tokenizer).model, []
    encode = model.encode

    def watched(images):
        seen.append((torch.get_num_threads(), torch.backends.cudnn.enabled, threading.current_thread().name))
        return encode(images)

    monkeypatch.setattr(model, "encode", watched)
    list(encoded_passes(model, *passes))
    assert {(threads, enabled) for threads, enabled, _ in seen} == {(1, True)}
    assert all(name.startswith("encode") for *_, name in seen)


def test_float32_is_computed_without_tf32_and_with_cudnn():
    before = torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32
    with full_float32():
        assert torch.backends.cudnn.enabled == before[0]
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32) == before


def test_a_pass_on_a_gpu_takes_a_part_of_its_memory(monkeypatch):
    class Properties:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    sizes = [compute_batch(size, torch.device("cuda")) for size in (28, 64, 256, 512, 2**20)]
    assert sizes == [1024, 1024, 128, 32, 1]


def test_no_pass_holds_rows_of_two_shards(passes):
    read, jobs = passes
    batches = [read(*job) for job in jobs]
    assert [batch.last_of_shard for batch in batches] == [False, False, True] * 2
    assert {len(batch.images) for batch in batches} == {64}
    assert np.all(batches[2].images[22:].numpy() == 0)
