"""Progress with rate and time left: a bar on a terminal, a line every few seconds anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)

SECONDS_BETWEEN_LINES = 5.0


def say(text: str) -> None:
    """Print a message of a command as it is: brackets in a path are no markup, and a long line is not broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class Meter:
    """Counts finished units of a known total; `note` attaches figures that are shown beside the count."""

    def __init__(self, total: int, description: str, unit: str, start: int = 0):
        self.total, self.description, self.unit = total, description, unit
        self.start = self.done = start
        self.began = self.last_line = time.monotonic()
        self.figures: dict[str, float] = {}

    def advance(self, n: int = 1) -> None:
        self.done += n
        self.show()

    def note(self, **figures: float) -> None:
        self.figures.update(figures)

    @property
    def rate(self) -> float:
        """Units per second since the start of this process (units done before it do not count)."""
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def status(self) -> str:
        return "  ".join([f"{self.rate:,.1f} {self.unit}/s", *(f"{k} {v:.4g}" for k, v in self.figures.items())])

    def show(self) -> None:
        now = time.monotonic()
        if now - self.last_line < SECONDS_BETWEEN_LINES and self.done < self.total:
            return
        self.last_line = now
        left = (self.total - self.done) / max(self.rate, 1e-9)
        print(
            f"{self.description}: {self.done:,}/{self.total:,} {self.unit}  {self.status()}  "
            f"elapsed {clock(now - self.began)}  left {clock(left)}",
            file=sys.stderr,
            flush=True,
        )


class Bar(Meter):
    """The same count, drawn as a bar that stays in place."""

    def __init__(self, total: int, description: str, unit: str, start: int, bars: Progress):
        super().__init__(total, description, unit, start)
        self.bars = bars
        self.task = bars.add_task(description, total=total, completed=start, status="")

    def show(self) -> None:
        self.bars.update(self.task, completed=self.done, status=self.status())


class Silent(Meter):
    """For every process but the first."""

    def show(self) -> None:
        pass


@contextmanager
def progress(total: int, description: str, unit: str = "step", start: int = 0, visible: bool = True) -> Iterator[Meter]:
    """A meter for `total` units of which `start` were done earlier; `visible` is false on all ranks but the first."""
    if not visible:
        yield Silent(total, description, unit, start)
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,}"),
            TextColumn("{task.fields[status]}"),
        )
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
            yield Bar(total, description, unit, start, bars)
    else:
        yield Meter(total, description, unit, start)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
