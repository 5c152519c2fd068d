"""What the first process has scanned is not scanned again by the others."""

from types import SimpleNamespace

import pytest

from pipelines.base import first_process as module
from pipelines.base.errors import UserError
from pipelines.base.first_process import first_has_checked, first_process
from pipelines.data import open_images
from tests.pipelines.conftest import shapes_data


class Store(dict):
    """A store in this process: the first process has always set a key before another one waits for it."""

    def set(self, key, value):
        self[key] = value


@pytest.fixture
def as_process(monkeypatch):
    store = Store()
    monkeypatch.setattr(module, "group_store", lambda: store)
    monkeypatch.setattr(module, "new_key", lambda purpose: purpose)
    monkeypatch.setattr(module, "wait_for", lambda store, key: store[key])
    return lambda rank: first_process(SimpleNamespace(process_index=rank, num_processes=2))


def test_others_know_that_the_first_has_checked_until_they_leave(as_process):
    with as_process(0) as first:
        assert first and not first_has_checked()
    with as_process(1) as first:
        assert not first and first_has_checked()
    assert not first_has_checked()


def test_where_the_first_has_failed_nothing_counts_as_checked(as_process):
    with pytest.raises(UserError, match="damaged"), as_process(0):
        raise UserError("damaged")
    with pytest.raises(UserError, match="damaged"), as_process(1):
        raise AssertionError("never runs")
    assert not first_has_checked()


def test_images_are_all_read_by_the_first_process_only(as_process, monkeypatch):
    images, reads = open_images(shapes_data(train=50), "train"), []
    read = images.read_pixels
    monkeypatch.setattr(type(images), "needs_decoding", True)
    monkeypatch.setattr(images, "read_pixels", lambda rows: reads.append(len(rows)) or read(rows))
    for rank in (0, 1):
        with as_process(rank):
            images.check_all_readable()
    assert sum(reads) == 50
