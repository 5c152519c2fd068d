"""Work that the first process does before the others, and an error that is the same on all of them.

The others wait at the store, not in a collective: a download may take longer than the timeout of a collective.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.base.errors import UserError
from pipelines.base.machine_errors import machine_error
from pipelines.base.process_store import Processes, group_store, new_key, wait_for

_following = False


def first_has_checked() -> bool:
    """Whether the first process has just done the same without an error: what it has scanned need not be scanned again.

    True in the body of `first_process` on all processes but the first.
    """
    return _following


@contextmanager
def first_process(processes: Processes | None = None) -> Iterator[bool]:
    """The body runs on the first process, then on all others at once; yields whether this is the first.

    Where it raises on the first process, no other process runs it: they raise a UserError with the same message.
    """
    if processes is None or processes.num_processes == 1:
        yield True
        return
    store, key = group_store(), new_key("first")
    if processes.process_index > 0:
        failure = json.loads(wait_for(store, key))
        if failure is not None:
            raise UserError(failure)
        with _following_first():
            yield False
        return
    try:
        yield True
    except BaseException as error:
        store.set(key, json.dumps(error_text(error)))
        raise
    store.set(key, json.dumps(None))


@contextmanager
def _following_first() -> Iterator[None]:
    global _following
    before, _following = _following, True
    try:
        yield
    finally:
        _following = before


def error_text(error: BaseException) -> str:
    """The message of an error, whatever it is."""
    if isinstance(error, UserError):
        return str(error)
    return machine_error(error) or f"{type(error).__name__}: {error}"
