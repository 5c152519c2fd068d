"""A hostile case: what is given to `smalti`, and what makes the answer a failure."""

from collections.abc import Callable
from dataclasses import dataclass

SECONDS, BYTES = 10.0, 2 * 2**30


def nothing() -> None:
    """What most cases prepare."""


@dataclass(frozen=True)
class Case:
    """`prepare` changes the case's own folder; `arguments` are then given to `smalti` there. `allowed`: exit codes."""

    kind: str
    name: str
    arguments: list[str]
    prepare: Callable[[], object] = nothing
    allowed: tuple[int, ...] = (2,)

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


@dataclass(frozen=True)
class Outcome:
    """How a case ended. `exit_code`: None if it was stopped from outside; `peak`: bytes; `limit`: seconds."""

    case: Case
    exit_code: int | None
    seconds: float
    peak: int
    errors: str
    limit: float = SECONDS

    @property
    def too_slow(self) -> bool:
        return self.seconds > self.limit

    @property
    def failures(self) -> list[str]:
        found = {
            "stopped from outside": self.exit_code is None,
            f"exit code {self.exit_code}": self.exit_code is not None and self.exit_code not in self.case.allowed,
            "traceback": "Traceback" in self.errors,
            "no message": not self.errors.strip() and self.exit_code not in (0, None),
            "a library's warning": "Warning" in self.errors,
            f"{self.seconds:.1f} s": self.too_slow,
            f"{self.peak / 2**30:.1f} GiB": self.peak > BYTES,
        }
        return [failure for failure, holds in found.items() if holds]
