"""Rows that turned out to be unreadable, so that they are tried once."""

import numpy as np
from numpy.typing import NDArray

MOST_REASONS = 100_000
NO_REASON = "the row could not be read before"


class UnreadableRows:
    """Some of `length` rows, a byte for each row once there is one, and why the first 100,000 of them are here."""

    def __init__(self, length: int):
        self._length = length
        self._known: NDArray[np.bool_] | None = None
        self._reasons: dict[int, str] = {}

    def add(self, reasons: dict[int, str]) -> None:
        """Remember these rows and why they cannot be read."""
        if not reasons:
            return
        if self._known is None:
            self._known = np.zeros(self._length, bool)
        self._known[list(reasons)] = True
        if len(self._reasons) < MOST_REASONS:
            self._reasons |= reasons

    def known(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these rows are here."""
        return np.zeros(len(rows), bool) if self._known is None else self._known[rows]

    def reason(self, row: int) -> str:
        """Why a row that is here cannot be read."""
        return self._reasons.get(row, NO_REASON)
