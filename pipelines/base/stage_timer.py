"""How long each stage of a chain of commands took, over all calls that it needed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pipelines.base.atomic_files import write_json
from pipelines.base.documents import read_json_if_valid
from pipelines.base.progress import console
from pipelines.base.signals import Interrupted


class StageTimer:
    """Announces each stage and remembers how long it took: the longest time, since a finished stage only looks.

    The calls that a signal ended count towards the one that finishes the stage.
    """

    def __init__(self, root: Path, accelerator: Accelerator, fresh: bool):
        self.path, self.main = root / "seconds.json", accelerator.is_main_process
        found = {} if fresh else read_json_if_valid(self.path) or {}
        self.seconds, self.unfinished = (_numbers(found.get(key)) for key in ("seconds", "unfinished"))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.main:
            console.rule(f"[bold]{name}")
        began, before = time.monotonic(), self.unfinished.pop(name, 0.0)
        try:
            yield
        except Interrupted:
            self.unfinished[name] = round(before + time.monotonic() - began, 2)
            self._write()
            raise
        took = round(before + time.monotonic() - began, 2)
        if took > self.seconds.get(name, 0.0):
            self.seconds[name] = took
            self._write()

    def _write(self) -> None:
        if self.main:
            write_json(self.path, {"seconds": self.seconds, "unfinished": self.unfinished})


def _numbers(found: Any) -> dict[str, float]:
    """The numbers in a mapping that a file holds."""
    found = found if isinstance(found, dict) else {}
    return {name: float(took) for name, took in found.items() if isinstance(took, int | float)}
