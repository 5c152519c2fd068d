"""Batches: resumed, shared among ranks and read by workers, they are the same batches."""

import pickle
import warnings

import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.data import DataConfig, open_images, ordered_loader, training_loader


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


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_change_nothing(parquet):
    dataset = parquet_images(parquet)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipped an unreadable")
        assert equal(training_loader(dataset, 1, 6, 5, workers=2), list(training_loader(dataset, 1, 6, 5)))


def test_a_dataset_can_be_sent_to_a_spawned_worker(parquet, fashion):
    named = {"kind": "torchvision", "name": "FashionMNIST", "root": str(fashion)}
    grey = DataConfig.model_validate({"source": named, "preprocess": {"mode": "L", "size": 28}})
    for dataset in (shapes(), parquet_images(parquet), open_images(grey, "train")):
        copy = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(copy.read(0).image, dataset.read(0).image)


def test_the_global_random_stream_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(training_loader(shapes(), 1, 6, 2))
    list(ordered_loader(shapes(), range(4), 2))
    assert torch.equal(torch.rand(1), expected)


def test_unreadable_rows_are_replaced_and_named_once(parquet):
    dataset = parquet_images(parquet)
    with pytest.warns(UserWarning) as caught:
        batches = list(training_loader(dataset, 0, 10, 12))
    named = sorted(str(w.message).split(": ")[1] for w in caught)
    assert named == ["emoji-17", "emoji-4", "emoji-9"]
    assert all(len(batch["image"]) == len(batch["label"]) == 10 for batch in batches)


def test_the_replacement_is_the_next_readable_row(parquet):
    dataset = parquet_images(parquet)
    with pytest.warns(UserWarning):
        batches = list(training_loader(dataset, 0, 30, 1))
    from pipelines.data import batch_indices

    rows = batch_indices(0, 0, 30, 30).tolist()
    assert torch.equal(batches[0]["image"][rows.index(9)], dataset.read(10).image)


def test_nothing_readable_is_one_message(tmp_path):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    images = [{"bytes": b"broken", "path": None}] * 3
    write_table(pa.table({"image": images, "key": ["a", "b", "c"], "category": ["x"] * 3}), tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="none of the 3 images can be read"):
        list(training_loader(parquet_images(tmp_path / "bad.parquet"), 0, 2, 1))


@pytest.mark.parametrize("batch_size", [1, 4, 23, 50])
def test_in_order_every_row_comes_once(batch_size):
    dataset = shapes()
    batches = list(ordered_loader(dataset, range(3, 23), batch_size))
    assert [e.key for batch in batches for e in batch] == [dataset.key(i) for i in range(3, 23)]
    assert all(len(batch) <= batch_size for batch in batches)


def test_in_order_nothing_is_augmented():
    dataset = shapes()
    (batch,) = ordered_loader(dataset, range(23), 23)
    assert all(torch.equal(e.image, dataset.read(i).image) for i, e in enumerate(batch))


def test_in_order_unreadable_rows_are_listed(parquet):
    loader = ordered_loader(parquet_images(parquet), range(30), 1)
    for _ in range(2):  # a second pass starts a new list
        assert sum(len(batch) for batch in loader) == 27
        assert [bad.key for bad in loader.unreadable] == ["emoji-4", "emoji-9", "emoji-17"]


def test_held_out_splits_are_never_augmented():
    recipe = {"source": {"kind": "shapes"}, "preprocess": {"size": 32}, "augment": {"horizontal_flip": True}}
    assert not open_images(DataConfig.model_validate(recipe), "validation").augment.horizontal_flip
