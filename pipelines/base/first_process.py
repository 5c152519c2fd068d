"""Work that the first process does before the others, and an error that is the same on all of them.

The processes meet in the key-value store of torch.distributed, not in a collective: a download may take longer than
the timeout of a collective, and an error travels as text.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

from pipelines.base.errors import UserError
from pipelines.base.machine_errors import machine_error

SECONDS_BETWEEN_LOOKS = 0.05
_numbers = count()


class Processes(Protocol):
    """What is asked of an accelerator."""

    @property
    def num_processes(self) -> int: ...

    @property
    def process_index(self) -> int: ...


@contextmanager
def first_process(processes: Processes | None = None) -> Iterator[bool]:
    """The body runs on the first process, then on all others at once; yields whether this is the first.

    Where it raises on the first process, no other process runs it: all raise, a UserError as the same UserError.
    """
    if processes is None or processes.num_processes == 1:
        yield True
        return
    store, key = default_store(), f"smalti/first/{next(_numbers)}"
    if processes.process_index == 0:
        try:
            yield True
        except BaseException as error:
            store.set(key, json.dumps({"error": describe_failure(error)}))
            raise
        store.set(key, json.dumps({"error": None}))
    else:
        while not store.check([key]):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        failure = json.loads(store.get(key))["error"]
        if failure is not None:
            raise UserError(failure)
        yield False


def default_store() -> Any:
    """The store of the default process group."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def describe_failure(error: BaseException) -> str:
    """The message of an error, whatever it is."""
    if isinstance(error, UserError):
        return str(error)
    return machine_error(error) or f"{type(error).__name__}: {error}"
