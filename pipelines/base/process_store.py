"""The key-value store of torch.distributed, where processes leave each other notes outside of collectives.

A collective has a timeout, needs every process at the same place, and cannot carry an error.
"""

import os
import time
from datetime import timedelta
from itertools import count
from typing import Any, Protocol

SECONDS_BETWEEN_LOOKS = 0.01
_numbers = count()


class Processes(Protocol):
    """What is asked of an accelerator."""

    @property
    def num_processes(self) -> int: ...

    @property
    def process_index(self) -> int: ...


def group_store() -> Any:
    """The store of the default process group."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def connect() -> Any:
    """A connection of its own to a store that all processes reach, for another thread; None where there is none.

    The launcher's store (torchrun, accelerate launch) is there before and after the process group.
    """
    from torch import distributed

    if not distributed.is_available():
        return None
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            return distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
                *address, is_master=False, timeout=timedelta(seconds=10)
            )
        return group_store().clone() if distributed.is_initialized() else None
    except (RuntimeError, ValueError, KeyError, AttributeError):
        return None


def new_key(purpose: str) -> str:
    """A key that no other call has used. Every process makes the same calls in the same order, so they agree on it."""
    return f"smalti/{purpose}/{next(_numbers)}"


def wait_for(store: Any, key: str) -> str:
    """The value of a key once it is set, however long that takes."""
    while not store.check([key]):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return store.get(key).decode()


def wait_for_all(processes: Processes) -> None:
    """Return once every process has called this, however long the slowest takes: a barrier has a timeout."""
    if processes.num_processes == 1:
        return
    store, key = group_store(), new_key("all")
    _count_up_to(store, key, processes.num_processes)
    if processes.process_index > 0:
        store.add(f"{key}/seen", 1)
    else:  # it may hold the store, which ends with it: it leaves when the others have seen that all are here
        _count_up_to(store, f"{key}/seen", processes.num_processes)


def _count_up_to(store: Any, key: str, number: int) -> None:
    store.add(key, 1)
    while store.add(key, 0) < number:
        time.sleep(SECONDS_BETWEEN_LOOKS)
