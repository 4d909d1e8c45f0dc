"""When a store that fails is left alone, and when it is tried again."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable

FAILURES_IN_A_ROW = 5
"""So many requests must fail in a row before a store is left alone."""

PAUSE_SECONDS = 1.0
"""How long after one request the next is let through to a store that fails."""


class Admission(enum.Enum):
    """Whether a request may be sent to a store."""

    REFUSED = enum.auto()
    TRIAL = enum.auto()
    """To find out whether it answers again: its caller is not to wait long for that."""
    GRANTED = enum.auto()


class Circuit:
    """Whether a store is asked; safe to use from several threads.

    After `FAILURES_IN_A_ROW` failures one request in `PAUSE_SECONDS` is let through as a trial,
    whatever became of the one before it, so that a store that answers again is found within about a
    second. One that failed is not tried again at once. The first answer lets all requests through.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[bool], None] = lambda is_open: None,
    ) -> None:
        """`on_change` is told whether it opened or closed."""
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._failures = 0
        self._next_trial = 0.0

    def admits(self) -> bool:
        """Whether a request may be sent now; asking takes nothing."""
        with self._lock:
            return self._admits()

    def enter(self) -> Admission:
        """The same, for a request that is then sent."""
        with self._lock:
            if not self._admits():
                return Admission.REFUSED
            self._next_trial = self._clock() + PAUSE_SECONDS
            return Admission.TRIAL if self._open else Admission.GRANTED

    def succeeded(self) -> None:
        """The store answered."""
        with self._lock:
            was_open, self._failures = self._open, 0
            if was_open:
                self._on_change(False)

    def failed(self) -> None:
        """The store did not answer, or only that it can't."""
        with self._lock:
            self._failures += 1
            if self._open:
                self._next_trial = self._clock() + PAUSE_SECONDS
            if self._failures == FAILURES_IN_A_ROW:
                self._on_change(True)

    @property
    def _open(self) -> bool:
        return self._failures >= FAILURES_IN_A_ROW

    def _admits(self) -> bool:
        return not self._open or self._clock() >= self._next_trial
