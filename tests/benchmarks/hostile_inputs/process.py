"""`smalti` in a process of its own, watched: how long it works and how much memory it takes."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.benchmarks.hostile_inputs.case import BYTES, Case, Outcome, nothing

PAUSE = 0.005  # seconds between two looks at a process


def import_everything() -> None:
    """What commands import when they need it: the processes forked from this one have it already."""
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import pipelines.decode
    import pipelines.inspect
    import pipelines.recipes.data_arguments
    import pipelines.run  # noqa: F401


def start(
    arguments: list[str],
    folder: Path,
    errors: Path,
    prepare: Callable[[], object] = nothing,
    new_interpreter: bool = False,
) -> int:
    """The id of a new process that runs `smalti` in a folder, in a process group of its own. `errors` gets its stderr.

    It is a fork of this one, or a new interpreter, which pays for its imports.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        prepare()
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if new_interpreter:
            os.execv(sys.executable, [sys.executable, "-m", "pipelines", *arguments])
        from pipelines import cli

        sys.argv = ["smalti", *arguments]
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Attempt:
    """A case at work, with its own copy of the fixture."""

    def __init__(self, case: Case, fixture: Path, limit: float, new_interpreter: bool):
        self.case, self.limit, self.peak, self.stopped = case, limit, 0, False
        self.place = tempfile.TemporaryDirectory()
        folder, self.errors = Path(self.place.name) / "work", Path(self.place.name) / "errors"
        shutil.copytree(fixture, folder, symlinks=True)
        self.began = time.monotonic()
        self.pid = start(case.arguments, folder, self.errors, case.prepare, new_interpreter)

    def look(self) -> Outcome | None:
        """How the case ended, or None while it works. A process beyond its limits is stopped."""
        done, status, usage = os.wait4(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.began
        if not done:
            self.peak = max(self.peak, resident(self.pid))
            if seconds > self.limit + 1 or self.peak > BYTES:
                self.stop()
            return None
        with self.place:
            text = self.errors.read_text(errors="replace") if self.errors.exists() else ""
        peak = max(self.peak, usage.ru_maxrss * 1024)
        exit_code = None if self.stopped else os.waitstatus_to_exitcode(status)
        return Outcome(self.case, exit_code, seconds, peak, text, self.limit)

    def stop(self) -> None:
        self.stopped = True
        os.killpg(self.pid, signal.SIGKILL)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def run_cases(
    cases: Iterable[Case], fixture: Path, limit: float, jobs: int, new_interpreter: bool = False
) -> Iterator[Outcome]:
    """The outcome of each case as it ends, `jobs` at a time. A case that is too slow gets a second attempt at the end,
    alone and before other work of the machine.
    """
    waiting, working, slow = deque(cases), list[Attempt](), list[Case]()
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                working.append(Attempt(waiting.popleft(), fixture, limit, new_interpreter))
            for attempt in list(working):
                if (outcome := attempt.look()) is not None:
                    working.remove(attempt)
                    if outcome.too_slow:
                        slow.append(outcome.case)
                    else:
                        yield outcome
            time.sleep(PAUSE)
    finally:  # of an interrupted pass: cases are process groups of their own, which Ctrl-C does not reach
        for attempt in working:
            attempt.stop()
    for case in slow:
        yield run_alone(Attempt(case, fixture, limit, new_interpreter))


def run_alone(attempt: Attempt) -> Outcome:
    """The outcome of an attempt that goes before other work of the machine, where this user may ask for that."""
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.sched_setscheduler(attempt.pid, os.SCHED_RR, os.sched_param(1))
    while (outcome := attempt.look()) is None:
        time.sleep(PAUSE)
    return outcome
