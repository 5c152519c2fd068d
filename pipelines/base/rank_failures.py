"""An error on any process ends all of them: one message, printed once, and the same exit code.

A process that fails leaves a note in the store. The others may be waiting in a collective that will never complete, so
a thread of each looks for such a note and ends its process.
"""

import atexit
import json
import os
import sys
import threading
import time
from typing import Any

from pipelines.base import process_store
from pipelines.base.process_store import Processes

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_FOR_THE_OTHERS = 5.0
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it

_ending = threading.Event()
_watcher: threading.Thread | None = None


def watch_other_processes(processes: Processes) -> None:
    """From now on, end this process when another one has reported a failure."""
    global _watcher
    if processes.num_processes == 1 or _watcher is not None:
        return
    store = process_store.connect()
    if store is not None:
        _watcher = threading.Thread(target=_watch, args=(store,), name="smalti-failures", daemon=True)
        _watcher.start()
        atexit.register(_end_watcher, _watcher)


def _end_watcher(watcher: threading.Thread) -> None:
    """A thread that is in the store's C++ code when the interpreter ends would abort the process."""
    _ending.set()
    watcher.join(timeout=SECONDS_FOR_THE_OTHERS)


def report_failure(exit_code: int) -> tuple[int, bool]:
    """Tell the other processes that this one ends with `exit_code`.

    Returns the exit code of the first failure of all processes, and whether this process is the one to print.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if world == 1:
        return exit_code, True
    store = process_store.connect()
    if store is None:  # before the process group: all processes read the same recipe and fail alike
        return exit_code, rank == 0
    try:
        mine = json.dumps({"rank": rank, "exit_code": exit_code})
        first = json.loads(store.compare_set(_key("failure"), "", mine))
        store.add(_key("seen"), 1)
        if first["rank"] == rank:
            _wait_for_the_others(store, world)
    except RuntimeError:  # the process that held the store has ended
        return exit_code, rank == 0
    return first["exit_code"], first["rank"] == rank


def _wait_for_the_others(store: Any, world: int) -> None:
    """A launcher ends the others as soon as this process has ended; the store may end with it."""
    deadline = time.monotonic() + SECONDS_FOR_THE_OTHERS
    while time.monotonic() < deadline and store.add(_key("seen"), 0) < world:
        time.sleep(process_store.SECONDS_BETWEEN_LOOKS)


def _watch(store: Any) -> None:
    try:
        while not store.check([_key("failure")]):
            if _ending.wait(SECONDS_BETWEEN_LOOKS):
                return
        first = json.loads(store.get(_key("failure")))
        if first["rank"] == int(os.environ.get("RANK", "0")):
            return
        store.add(_key("seen"), 1)
    except RuntimeError:  # the process that held the store has ended
        return
    if sys.stderr.isatty():
        sys.stderr.write(SHOW_CURSOR)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(first["exit_code"])  # the main thread may wait in a collective, where no exception reaches it


def _key(name: str) -> str:
    return f"smalti/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"
