"""Batches: resumed, shared among ranks and read by workers, they are the same batches."""

import os
import pickle
import resource
import warnings

import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.data import DataConfig, open_images, ordered_batches, training_loader
from pipelines.data.read_ahead import read_ahead
from tests.pipelines.conftest import read_example


def shapes(**fields):
    source = {"kind": "shapes", "train": 23, "validation": 9}
    augment = {"horizontal_flip": True, "shift": 2}
    recipe = {"source": source, "preprocess": {"size": 32}, "augment": augment, **fields}
    return open_images(DataConfig.model_validate(recipe), "train")


def parquet_images(parquet, split="train", **fields):
    source = {"kind": "huggingface", "path": "parquet", "data_files": str(parquet), "key": "key", "label": "category"}
    recipe = {"source": source, "preprocess": {"size": 8}, "validation_fraction": 0, "test_fraction": 0, **fields}
    return open_images(DataConfig.model_validate(recipe), split)


def equal(some, others) -> bool:
    pairs = list(zip(some, others, strict=True))
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def test_batches_are_bytes_and_long_labels():
    batch = next(iter(training_loader(shapes(), 0, 6, 1)))
    assert batch["image"].shape == (6, 3, 32, 32) and batch["image"].dtype == torch.uint8
    assert batch["label"].shape == (6,) and batch["label"].dtype == torch.int64


def test_a_resumed_run_sees_the_same_batches():
    whole = list(training_loader(shapes(), 1, 6, 9))
    assert len(whole) == 9
    assert equal(training_loader(shapes(), 1, 6, 9, start_step=4), whole[4:])


def test_ranks_concatenated_are_one_process():
    ranks = [training_loader(shapes(), 1, 6, 5, rank, 3) for rank in range(3)]
    joined = [{k: torch.cat([b[k] for b in parts]) for k in parts[0]} for parts in zip(*ranks, strict=True)]
    assert equal(joined, training_loader(shapes(), 1, 6, 5))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_decoding_threads_change_nothing(parquet, workers):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipped an unreadable")
        expected = list(training_loader(parquet_images(parquet), 1, 60, 5))
        assert equal(training_loader(parquet_images(parquet, workers=workers), 1, 60, 5), expected)


def test_a_dataset_can_be_sent_to_a_spawned_worker(parquet, fashion):
    named = {"kind": "torchvision", "name": "FashionMNIST", "root": str(fashion)}
    grey = DataConfig.model_validate({"source": named, "preprocess": {"mode": "L", "size": 28}})
    for dataset in (shapes(), parquet_images(parquet), open_images(grey, "train")):
        copy = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(read_example(copy, 0).image, read_example(dataset, 0).image)


def test_the_global_random_stream_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(training_loader(shapes(), 1, 6, 2))
    list(ordered_batches(shapes(), range(4), 2))
    assert torch.equal(torch.rand(1), expected)


def test_unreadable_rows_are_replaced_and_named_once(parquet):
    dataset = parquet_images(parquet)
    with pytest.warns(UserWarning) as caught:
        batches = list(training_loader(dataset, 0, 10, 12))
    named = sorted(str(w.message).split(": ")[1] for w in caught)
    assert named == ["emoji-17", "emoji-4", "emoji-9"]
    assert all(len(batch["image"]) == len(batch["label"]) == 10 for batch in batches)


@pytest.fixture(scope="module")
def half_broken(tmp_path_factory):
    """60 rows of one grey each; rows 20 to 49 are broken."""
    import io

    import pyarrow as pa
    from PIL import Image
    from pyarrow.parquet import write_table

    content = []
    for row in range(60):
        Image.new("L", (8, 8), 4 * row).save(stream := io.BytesIO(), "png")
        content.append({"bytes": b"broken" if 20 <= row < 50 else stream.getvalue(), "path": None})
    path = tmp_path_factory.mktemp("broken") / "train.parquet"
    write_table(pa.table({"image": content, "key": [str(i) for i in range(60)], "category": ["x"] * 60}), path)
    return path


@pytest.mark.filterwarnings("ignore:skipped an unreadable")
def test_no_row_stands_in_for_all_unreadable_ones(half_broken):
    """Each of the 30 readable rows is expected 80 times in 40 epochs; the standard deviation is 6."""
    dataset = parquet_images(half_broken)
    greys = [batch["image"][:, 0, 0, 0] for batch in training_loader(dataset, 0, 60, 40)]
    counts = torch.bincount(torch.cat(greys).long() // 4, minlength=60)
    assert counts[20:50].sum() == 0 and counts.sum() == 60 * 40
    readable = torch.cat([counts[:20], counts[50:]])
    assert readable.min() > 50 and readable.max() < 110


@pytest.mark.filterwarnings("ignore:skipped an unreadable")
@pytest.mark.parametrize("cache", [{}, {"cache_bytes": 0, "cache_file_bytes": 0}], ids=["cached", "uncached"])
def test_replacements_depend_on_the_place_alone(half_broken, cache):
    """Not on which rows were found to be unreadable before, nor on ranks or where a run was resumed."""
    whole = list(training_loader(parquet_images(half_broken, **cache), 3, 12, 15))
    assert equal(training_loader(parquet_images(half_broken, **cache), 3, 12, 15, start_step=9), whole[9:])
    ranks = [training_loader(parquet_images(half_broken, **cache), 3, 12, 15, rank, 2) for rank in range(2)]
    joined = [{k: torch.cat([b[k] for b in parts]) for k in parts[0]} for parts in zip(*ranks, strict=True)]
    assert equal(joined, whole)


def test_unreadable_rows_are_all_remembered_and_some_reasons(monkeypatch):
    import numpy as np

    from pipelines.data import unreadable_rows
    from pipelines.data.unreadable_rows import UnreadableRows

    monkeypatch.setattr(unreadable_rows, "MOST_REASONS", 2)
    found = UnreadableRows(100)
    for row in (7, 3, 50):
        found.add({row: f"reason {row}"})
    assert np.flatnonzero(found.known(np.arange(100))).tolist() == [3, 7, 50]
    assert [found.reason(row) for row in (7, 3, 50)] == ["reason 7", "reason 3", unreadable_rows.NO_REASON]


def test_nothing_readable_is_one_message(tmp_path):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    images = [{"bytes": b"broken", "path": None}] * 3
    write_table(pa.table({"image": images, "key": ["a", "b", "c"], "category": ["x"] * 3}), tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="none of the 3 images can be read; the first: a: "):
        parquet_images(tmp_path / "bad.parquet")


@pytest.mark.parametrize("batch_size", [1, 4, 23, 50])
def test_in_order_every_row_comes_once(batch_size):
    dataset = shapes()
    batches = list(ordered_batches(dataset, range(3, 23), batch_size))
    assert [row.key for batch in batches for row in batch.metadata] == [dataset.key(i) for i in range(3, 23)]
    assert all(len(batch) <= batch_size for batch in batches)


def test_in_order_nothing_is_augmented():
    dataset = shapes()
    (batch,) = ordered_batches(dataset, range(23), 23)
    assert all(torch.equal(image, read_example(dataset, i).image) for i, image in enumerate(batch.image))


@pytest.mark.parametrize("batch_size", [1, 4, 7, 30])
@pytest.mark.parametrize("beside", [False, True])
def test_in_order_unreadable_rows_are_listed_with_their_places(parquet, batch_size, beside):
    dataset = parquet_images(parquet)
    batches = list(ordered_batches(dataset, range(30), batch_size, keep_empty=True, beside=beside))
    assert len(batches) == -(-30 // batch_size)
    bad = [number * batch_size + place for number, batch in enumerate(batches) for place, _ in batch.unreadable]
    assert bad == [4, 9, 17]
    for number, batch in enumerate(batches):
        rows = [row for row in range(number * batch_size, min(30, (number + 1) * batch_size)) if row not in bad]
        assert [row.key for row in batch.metadata] == [f"emoji-{row}" for row in rows]
        assert [row.label for row in batch.metadata] == batch.label.tolist()
        assert all(
            torch.equal(image, read_example(dataset, row).image) for row, image in zip(rows, batch.image, strict=True)
        )


def test_in_order_a_batch_without_images_is_left_out(parquet):
    assert len(list(ordered_batches(parquet_images(parquet), range(3, 6), 1))) == 2


@pytest.mark.parametrize("beside", [False, True])
def test_reading_ahead_keeps_the_order(beside):
    assert list(read_ahead(lambda x: x * x, range(20), beside)) == [x * x for x in range(20)]


def test_reading_ahead_raises_where_the_item_would_have_come():
    items = read_ahead(lambda x: 1 // (3 - x), range(20), beside=True)
    assert [next(items) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_held_out_splits_are_never_augmented():
    recipe = {"source": {"kind": "shapes"}, "preprocess": {"size": 32}, "augment": {"horizontal_flip": True}}
    assert not open_images(DataConfig.model_validate(recipe), "validation").augment.horizontal_flip


def test_an_unreadable_row_costs_one_more_decoding(parquet, decoded):
    """Three rows are broken, and each is replaced by one that can be read."""
    dataset = parquet_images(parquet, cache_bytes=0, cache_file_bytes=0)
    decoded.clear()
    with pytest.warns(UserWarning):
        list(training_loader(dataset, 0, 30, 1))
    assert len(decoded) == 30 + 3


def test_open_files_do_not_pile_up(class_folders, tmp_path):
    """Under a limit of a few files more than are open now, hundreds of PNGs are read by four threads."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        content = (class_folders / "train" / name).iterdir().__next__().read_bytes()
        for number in range(200):
            (tmp_path / name / f"{number}.png").write_bytes(content)
    recipe = {"source": {"kind": "huggingface", "path": str(tmp_path)}, "preprocess": {"size": 8}, "workers": 4}
    dataset = open_images(DataConfig.model_validate({**recipe, "validation_fraction": 0, "test_fraction": 0}), "train")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 16, hard))
    try:
        kept = list(ordered_batches(dataset, range(400), 16))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sum(len(batch) for batch in kept) == 400
