"""When a store that fails is left alone, and when it is tried again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FAILURES_IN_A_ROW = 5
"""So many requests must fail in a row before a store is left alone."""

PAUSE_SECONDS = 1.0
"""How long after one request the next is let through to a store that fails."""


class Circuit:
    """Whether a store is asked; safe to use from several threads.

    After `FAILURES_IN_A_ROW` failures one request in `PAUSE_SECONDS` is let through, whatever
    became of the one before it, so that a store that answers again is found within about a second.
    The first answer lets all requests through.
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

    def enter(self) -> bool:
        """The same, for a request that is then sent."""
        with self._lock:
            if not self._admits():
                return False
            self._next_trial = self._clock() + PAUSE_SECONDS
            return True

    def succeeded(self) -> None:
        """The store answered."""
        with self._lock:
            was_open, self._failures = self._failures >= FAILURES_IN_A_ROW, 0
            if was_open:
                self._on_change(False)

    def failed(self) -> None:
        """The store did not answer, or only that it can't."""
        with self._lock:
            self._failures += 1
            if self._failures == FAILURES_IN_A_ROW:
                self._next_trial = self._clock() + PAUSE_SECONDS
                self._on_change(True)

    def _admits(self) -> bool:
        return self._failures < FAILURES_IN_A_ROW or self._clock() >= self._next_trial
