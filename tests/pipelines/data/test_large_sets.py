"""Ten million rows: opening, carving and the first batch take no object and no byte for every row."""

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.base.errors import UserError
from pipelines.data import ImageDataset, Preprocess, RowMetadata, training_loader
from pipelines.data.sampler import batch_indices
from pipelines.data.splits import carve_split

MILLIONS = 10_000_000


class ManyRows:
    """A source whose rows exist when they are asked for."""

    def __init__(self):
        self.classes, self.has_text, self.provenance = ["even", "odd"], False, {"kind": "many"}
        self.fingerprint = self.array = None

    def __len__(self):
        return MILLIONS

    def metadata(self, rows, labels=None):
        return [RowMetadata(str(row), row % 2) for row in rows]

    def labels(self, rows):
        return torch.tensor(rows) % 2

    def factors(self, rows):
        return None

    def readers(self, rows):
        return [lambda row=row: Image.new("L", (4, 4), row % 256) for row in rows]


@pytest.fixture
def peak():
    """The most bytes that were allocated since, read by a call."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_the_first_batch_takes_memory_of_its_own_size(peak):
    """Beside the rows that are carved, which are 160 kB here."""
    rows = carve_split(MILLIONS, {"validation": 0.001, "test": 0.001}, "train")
    dataset = ImageDataset(ManyRows(), Preprocess(mode="L", size=4), rows, cache_bytes=0)
    batch = next(iter(training_loader(dataset, seed=0, batch_size=64, steps=10**9)))
    assert batch["image"].shape == (64, 1, 4, 4)
    assert peak() < 8e6


def test_batches_of_any_epoch_take_constant_memory(peak):
    found = batch_indices(0, 10**9, 128, MILLIONS)
    assert len(found.unique()) == 128
    assert peak() < 2e6


def test_carving_takes_the_memory_of_what_is_carved(peak):
    train = carve_split(MILLIONS, {"test": 0.0001}, "train")
    assert len(train) == MILLIONS - 1000
    assert peak() < 1e6


@pytest.mark.parametrize("length", [3, 10, 1000, 4099])
def test_carved_splits_are_a_partition(length):
    fractions = {"validation": 0.1, "test": 0.25}
    parts = {name: carve_split(length, fractions, name) for name in ("train", "validation", "test")}
    rows = [part[np.arange(len(part))] for part in parts.values()]
    assert all((np.diff(each) > 0).all() for each in rows)
    assert sorted(np.concatenate(rows).tolist()) == list(range(length))
    assert len(parts["validation"]) == max(1, round(0.1 * length))


def test_carving_everything_away_is_refused():
    with pytest.raises(UserError, match="3 training images cannot be carved"):
        carve_split(3, {"validation": 0.5, "test": 0.5}, "train")
