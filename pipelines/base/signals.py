"""Ctrl-C and SIGTERM: they end a command at once, or, while it can save its state, after the current step."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal ended the command. `saved` says what was kept. A BaseException, as KeyboardInterrupt is."""

    def __init__(self, signal_number: int, saved: str | None = None):
        super().__init__(signal_number, saved)
        self.signal_number, self.saved = signal_number, saved

    @property
    def exit_code(self) -> int:
        """As shells count: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal_number

    def __str__(self) -> str:
        name = "interrupted" if self.signal_number == signal.SIGINT else "terminated"
        kept = self.saved or "what is finished is kept"
        return f"{name}; {kept}. The same command continues"


class StopRequest:
    """Whether a signal has asked for the end."""

    signal_number: int | None = None

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    def interrupted(self, saved: str) -> Interrupted:
        """The exception that ends the command once its state is saved."""
        return Interrupted(self.signal_number or signal.SIGTERM, saved)


def raise_on_signals() -> None:
    """From now on a signal raises `Interrupted` at once. Only the main thread can ask for this."""

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:  # a forked worker inherits the handler and leaves the end to its parent
            raise Interrupted(number)

    process = os.getpid()
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, handle)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block, the first signal only sets the request; a second one raises `Interrupted` at once."""
    request, process = StopRequest(), os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            return
        if request.requested:
            raise Interrupted(number, "stopped at once, the last saved state is kept")
        request.signal_number = number
        os.write(sys.stderr.fileno() if _has_descriptor() else 2, b"smalti: saving the state; again stops at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_descriptor() -> bool:
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
