"""Pixels that are kept: the same as decoded, decoded once, shared, and safe after a crash."""

import hashlib
import os
import shutil
import subprocess
import sys
import warnings
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data import DataConfig, open_images, training_loader
from pipelines.data.pixel_cache import PixelCache, cache_folder, pixel_cache, record_type

SHAPE = (3, 4, 5)


def pixels(rows: list[int]) -> torch.Tensor:
    random = [np.random.default_rng(row).integers(0, 256, SHAPE, np.uint8) for row in rows]
    return torch.from_numpy(np.stack(random))


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pipelines.data.pixel_cache._open_caches", WeakValueDictionary())


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "some.pixels"


def test_what_was_put_is_what_is_there(path):
    cache = PixelCache(10, SHAPE, path)
    cache.put([7, 2, 5], pixels([7, 2, 5]), [1, -1, 3])
    assert cache.known(np.arange(10)).nonzero()[0].tolist() == [2, 5, 7]
    found, labels = cache.get(rows(5, 7, 5))
    assert torch.equal(found, pixels([5, 7, 5])) and labels.tolist() == [3, 1, 3]


def test_a_file_is_found_again(tmp_path):
    PixelCache(10, SHAPE, tmp_path / "some.pixels").put([3], pixels([3]), [2])
    again = PixelCache(10, SHAPE, tmp_path / "some.pixels")
    assert again.known(rows(2, 3)).tolist() == [False, True]
    assert torch.equal(again.get(rows(3))[0], pixels([3]))


def test_processes_see_each_others_rows(tmp_path):
    first, second = (PixelCache(10, SHAPE, tmp_path / "some.pixels") for _ in range(2))
    assert not second.known(rows(4)).any()
    first.put([4], pixels([4]), [0])
    assert second.known(rows(4)).all()
    assert torch.equal(second.get(rows(4))[0], pixels([4]))


@pytest.mark.parametrize("byte", [0, 4, 8, 67])
def test_a_damaged_row_is_not_there(tmp_path, byte):
    """Checksum, label, first and last pixel."""
    path, size = tmp_path / "some.pixels", record_type(SHAPE).itemsize
    PixelCache(10, SHAPE, path).put([3, 4], pixels([3, 4]), [2, 2])
    content = bytearray(path.read_bytes())
    content[3 * size + byte] ^= 255
    path.write_bytes(content)
    assert PixelCache(10, SHAPE, path).known(rows(3, 4)).tolist() == [False, True]


def test_a_row_in_the_wrong_place_is_not_there(tmp_path):
    path, size = tmp_path / "some.pixels", record_type(SHAPE).itemsize
    PixelCache(10, SHAPE, path).put([3], pixels([3]), [2])
    content = bytearray(path.read_bytes())
    content[4 * size : 5 * size] = content[3 * size : 4 * size]
    path.write_bytes(content)
    assert PixelCache(10, SHAPE, path).known(rows(3, 4)).tolist() == [True, False]


def test_a_file_takes_no_room_before_it_is_written(tmp_path):
    PixelCache(10**8, SHAPE, tmp_path / "some.pixels")
    assert (tmp_path / "some.pixels").stat().st_blocks * 512 < 10**6


def test_a_full_disk_is_no_error(tmp_path, monkeypatch):
    cache = PixelCache(10, SHAPE, tmp_path / "some.pixels")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache.put([3], pixels([3]), [2])
    assert not cache.known(rows(3)).any()


def test_small_sets_are_in_memory_and_large_ones_in_a_file():
    size = 10 * record_type(SHAPE).itemsize
    assert pixel_cache("a", 10, SHAPE, size, size)._file is None
    assert pixel_cache("b", 10, SHAPE, size - 1, size)._file is not None
    assert pixel_cache("c", 10, SHAPE, size - 1, size - 1) is None
    assert pixel_cache(None, 10, SHAPE, size - 1, size) is None


def test_several_processes_of_a_machine_share_a_file(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert pixel_cache("a", 10, SHAPE, 10**6, 10**6)._file is not None
    assert pixel_cache("drawn", 10, SHAPE, 10**6, 10**6, decoded=False)._file is None


def test_the_budget_of_memory_is_that_of_all_processes(monkeypatch):
    size = 10 * record_type(SHAPE).itemsize
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert pixel_cache(None, 10, SHAPE, 2 * size, 0) is not None
    assert pixel_cache(None, 10, SHAPE, 2 * size - 1, 0) is None


def test_pixels_take_a_quarter_of_the_machines_memory_at_most(monkeypatch):
    size = 10 * record_type(SHAPE).itemsize
    monkeypatch.setattr("pipelines.data.pixel_cache.machine_memory", lambda: 4 * size)
    assert pixel_cache(None, 10, SHAPE, 10**9, 0) is not None
    monkeypatch.setattr("pipelines.data.pixel_cache.machine_memory", lambda: 4 * size - 4)
    assert pixel_cache(None, 10, SHAPE, 10**9, 0) is None


def test_the_folder_stays_within_its_budget():
    size = 10 * record_type((3, 64, 64)).itemsize
    for name in ("a", "b", "c"):
        cache = pixel_cache(name, 10, (3, 64, 64), 0, 2 * size + 10**4)
        cache.put(range(10), torch.zeros(10, 3, 64, 64, dtype=torch.uint8), [0] * 10)
        for file in cache_folder().glob("*.pixels"):
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 10))  # time passes
    assert len(list(cache_folder().glob("*.pixels"))) == 2


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMALTI_CACHE", str(tmp_path / "file"))
    assert pixel_cache("a", 10, SHAPE, 0, 10**6) is None


# ---- data sets with a cache


def data(parquet, **fields) -> DataConfig:
    source = {"kind": "huggingface", "path": "parquet", "data_files": str(parquet), "key": "key", "label": "category"}
    recipe = {"source": source, "preprocess": {"size": 8}, "validation_fraction": 0.2, "test_fraction": 0, **fields}
    return DataConfig.model_validate(recipe)


@pytest.fixture(scope="module")
def readable(parquet, tmp_path_factory):
    """The same data without its unreadable rows."""
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("readable") / "train.parquet"
    pq.write_table(pq.read_table(parquet).take([row for row in range(30) if row not in (4, 9, 17)]), path)
    return path


BUDGETS = {
    "none": {"cache_bytes": 0, "cache_file_bytes": 0},
    "memory": {},
    "file": {"cache_bytes": 0},
}


def epochs(config: DataConfig) -> list[dict[str, torch.Tensor]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipped an unreadable")
        return [
            batch
            for _ in range(2)
            for batch in training_loader(open_images(config, "train"), seed=1, batch_size=7, steps=12)
        ]


@pytest.mark.parametrize("budget", ["memory", "file"])
def test_cached_is_uncached_bit_for_bit(parquet, budget):
    expected = epochs(data(parquet, **BUDGETS["none"]))
    for batch, reference in zip(epochs(data(parquet, **BUDGETS[budget])), expected, strict=True):
        assert all(torch.equal(batch[name], reference[name]) for name in reference)


@pytest.mark.parametrize("budget", ["memory", "file"])
def test_rows_read_in_part_before_are_put_together_rightly(parquet, budget):
    dataset, reference = (open_images(data(parquet, **BUDGETS[name]), "train") for name in (budget, "none"))
    dataset.read_batch([3, 5, 6])
    for request in ([6, 2, 5, 2, 4], [4, 4], list(range(24))):
        found, expected = dataset.read_batch(request), reference.read_batch(request)
        assert torch.equal(found.image, expected.image) and torch.equal(found.label, expected.label)
        assert found.metadata == expected.metadata and found.unreadable == expected.unreadable


@pytest.mark.parametrize("budget", ["memory", "file"])
def test_a_picture_is_decoded_once(parquet, decoded, budget):
    config = data(parquet, validation_fraction=0, **BUDGETS[budget])
    dataset = open_images(config, "train")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "skipped an unreadable")
        for start in (0, 12):  # two loaders: one reads all these rows at once
            list(training_loader(dataset, seed=0, batch_size=10, steps=start + 12, start_step=start))
    assert len(decoded) == 30


def test_the_next_command_decodes_nothing(readable, decoded):
    config = data(readable, **BUDGETS["file"])
    expected = open_images(config, "train").read_batch(range(20)).image
    decoded.clear()
    assert torch.equal(open_images(config, "train").read_batch(range(4)).image, expected[:4])
    assert not decoded


def test_one_pass_may_leave_the_cache_alone(parquet, decoded):
    dataset = open_images(data(parquet), "train")
    dataset.read_batch(range(20), keep=False)
    decoded.clear()
    dataset.read_batch(range(10, 20))
    assert decoded


def test_carved_splits_share_one_cache(parquet):
    train, validation = (open_images(data(parquet), split) for split in ("train", "validation"))
    assert train._cache is validation._cache is not None


def test_other_preprocessing_has_another_cache(parquet):
    config = data(parquet, **BUDGETS["file"])
    other = config.model_copy(update={"preprocess": config.preprocess.model_copy(update={"resample": "bicubic"})})
    first, second = (open_images(each, "train") for each in (config, other))
    images = first.read_batch(range(20)).image
    assert not torch.equal(second.read_batch(range(20)).image, images)


def test_a_changed_file_is_decoded_again(parquet, tmp_path):
    import pyarrow.parquet as pq

    table, path = pq.read_table(parquet), tmp_path / "copy.parquet"
    pq.write_table(table, path)
    before = open_images(data(path, **BUDGETS["file"]), "train").read_batch(range(20)).image
    pq.write_table(table.take(list(range(29, -1, -1))), path)
    os.utime(path, (1, 1))
    assert not torch.equal(open_images(data(path, **BUDGETS["file"]), "train").read_batch(range(20)).image, before)


def pictures(root, **fields) -> DataConfig:
    source = {"kind": "torchvision", "name": "ImageFolder", "root": str(root), "download": False}
    recipe = {"source": source, "preprocess": {"size": 8}, "validation_fraction": 0.25, "test_fraction": 0, **fields}
    return DataConfig.model_validate(recipe)


@pytest.fixture
def image_folder(class_folders, tmp_path):
    shutil.copytree(class_folders / "train", tmp_path / "pictures")
    return tmp_path / "pictures"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_carved_splits_of_torchvision_share_one_cache(image_folder, monkeypatch, processes):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    train, validation = (open_images(pictures(image_folder), split) for split in ("train", "validation"))
    assert train._cache is validation._cache is not None
    assert (train._cache._file is not None) == (processes == "2")


@pytest.mark.parametrize("change", ["picture", "max_pixels", "arguments"])
def test_changed_data_of_torchvision_are_decoded_again(image_folder, change):
    def images(**fields):
        return open_images(pictures(image_folder, cache_bytes=0, validation_fraction=0, **fields), "train")

    before = images().read_batch(range(12))
    if change == "picture":
        Image.new("RGB", (20, 16), "red").save(image_folder / "cat" / "00.png")
        after = images().read_batch(range(12))
        changed = [not torch.equal(a, b) for a, b in zip(before.image, after.image, strict=True)]
        assert changed == [True, *[False] * 11]
    elif change == "max_pixels":
        with pytest.raises(UserError, match="none of the 12 images"):
            images(max_pixels=100)
    else:
        other = pictures(image_folder, cache_bytes=0)
        source = other.source.model_copy(update={"arguments": {"allow_empty": True}})
        assert open_images(other.model_copy(update={"source": source}), "train")._cache is not images()._cache


def test_files_that_torchvision_does_not_list_are_looked_at(fashion, tmp_path):
    shutil.copytree(fashion / "FashionMNIST", tmp_path / "FashionMNIST")
    source = {"kind": "torchvision", "name": "FashionMNIST", "root": str(tmp_path), "download": False}
    recipe = DataConfig.model_validate({"source": source, "preprocess": {"size": 8}, "validation_fraction": 0})
    before = open_images(recipe, "train")._source.fingerprint
    assert open_images(recipe, "train")._source.fingerprint == before
    os.utime(tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte", (1, 1))
    assert open_images(recipe, "train")._source.fingerprint != before


KILLED = """
import os, signal, sys, torch
from pipelines.data import DataConfig, open_images
dataset = open_images(DataConfig.model_validate_json(sys.argv[1]), "train")
dataset.read_batch(range(9))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_good_file(readable, decoded):
    config = data(readable, **BUDGETS["file"])
    subprocess.run([sys.executable, "-c", KILLED, config.model_dump_json()], check=False)
    dataset, reference = (open_images(data(readable, **BUDGETS[name]), "train") for name in ("file", "none"))
    decoded.clear()
    found = dataset.read_pixels(range(9)).image
    assert not decoded
    assert torch.equal(found, reference.read_pixels(range(9)).image)


FILL = """
import hashlib, sys, torch
from pipelines.data import DataConfig, open_images
dataset = open_images(DataConfig.model_validate_json(sys.argv[1]), "train")
order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(int(sys.argv[2]))).tolist()
for row in order:
    dataset.read_pixels([row])
image = dataset.read_pixels(range(len(dataset))).image
print(hashlib.sha256(image.numpy().tobytes()).hexdigest(), dataset._cache._file is not None)
"""


@pytest.mark.slow
def test_processes_that_fill_one_file_at_once_read_the_same(readable):
    config = data(readable)
    whole = open_images(config, "train").read_pixels(range(22)).image.numpy().tobytes()
    environment = {**os.environ, "LOCAL_WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", FILL, config.model_dump_json(), str(seed)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    outputs = {process.communicate()[0] for process in running}
    assert outputs == {f"{hashlib.sha256(whole).hexdigest()} True\n"}
    assert len(list(cache_folder().glob("*.pixels"))) == 1
