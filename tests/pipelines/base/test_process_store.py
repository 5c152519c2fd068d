"""Processes that wait for each other at a store, which ends with the first of them."""

import threading
from types import SimpleNamespace

from pipelines.base import process_store


class Store:
    """A store in memory. `open` turns false when the first process has left."""

    def __init__(self):
        self.numbers, self.lock, self.open = {}, threading.Lock(), True

    def add(self, key, number):
        with self.lock:
            if not self.open:
                raise ConnectionResetError("the first process has left")
            self.numbers[key] = self.numbers.get(key, 0) + number
            return self.numbers[key]


def test_the_first_process_leaves_when_the_others_know_that_all_have_come(monkeypatch):
    """Here the others look rarely: the first one would be gone before they do."""
    store, left = Store(), []
    monkeypatch.setattr(process_store, "group_store", lambda: store)
    monkeypatch.setattr(process_store, "new_key", lambda purpose: f"smalti/{purpose}")

    def look_rarely(seconds):
        threading.Event().wait(0.001 if threading.current_thread().name == "0" else 0.1)

    monkeypatch.setattr(process_store.time, "sleep", look_rarely)

    def work(rank):
        process_store.wait_for_all(SimpleNamespace(num_processes=3, process_index=rank))
        left.append(rank)
        if rank == 0:
            store.open = False

    threads = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in (1, 2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(left) == [0, 1, 2]
