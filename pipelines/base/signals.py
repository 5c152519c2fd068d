"""Ctrl-C and SIGTERM: they end a command at once, or, while it can save its state, after the current step."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipelines.base.process_store import Processes, group_store, new_key, wait_for

SECONDS_BETWEEN_LOOKS = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C under a launcher arrives twice: from the terminal, and from the launcher, which passes it on at once.
SECONDS_OF_ONE_REQUEST = 3.0


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
    """Whether a signal has asked for the end, on this process (`requested`) or on any (`before`)."""

    def __init__(self, processes: Processes | None = None):
        self.signal_number: int | None = None
        self.since = 0.0
        self._processes = processes if processes is not None and processes.num_processes > 1 else None
        self._key = new_key("stop") if self._processes else ""
        self._next_look, self._looked = 0, (0, time.monotonic())

    @property
    def requested(self) -> bool:
        return self.signal_number is not None

    def before(self, step: int) -> bool:
        """Whether training stops before `step`. All processes ask before each step and get the same answer.

        The first process decides about once a second, at steps which it tells the others.
        """
        if self._processes is None:
            return self.requested
        if step < self._next_look:
            return False
        store = group_store()
        if self.requested and not store.check([self._key]):
            store.set(self._key, str(self.signal_number))
        place = f"{self._key}/{step}"
        if self._processes.process_index == 0:
            stops = store.check([self._key])
            store.set(place, json.dumps(None if stops else self._plan(step)))
        self._next_look = json.loads(wait_for(store, place))
        if self._next_look is None:
            self._next_look, self.signal_number = step, int(store.get(self._key))
            return True
        return False

    def _plan(self, step: int) -> int:
        """The next step at which to look: about SECONDS_BETWEEN_LOOKS from now, at the pace since the last look."""
        (last, then), now = self._looked, time.monotonic()
        self._looked = step, now
        pace = (step - last) / max(now - then, 1e-3) if step > last else 0.0
        return step + max(1, int(pace * SECONDS_BETWEEN_LOOKS))

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
def stop_requests(processes: Processes | None = None) -> Iterator[StopRequest]:
    """Within the block, the first signal only sets the request; one that comes later raises `Interrupted` at once.

    with stop_requests(accelerator) as stop:
        for step in …:
            if stop.before(step):
                save(step)
                raise stop.interrupted(f"{folder}: the state of step {step} is saved")
    """
    request, process = StopRequest(processes), os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            return
        if request.requested and time.monotonic() - request.since >= SECONDS_OF_ONE_REQUEST:
            raise Interrupted(number, "stopped at once, the last saved state is kept")
        if request.requested:
            return
        request.signal_number, request.since = number, time.monotonic()
        if processes is None or processes.process_index == 0:
            os.write(2, b"\nsmalti: stopping after this step; the same signal again stops at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
