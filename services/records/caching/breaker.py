"""When a server that fails is left alone, and when it is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
SLOW_IN_A_ROW = 5

# An outage that begins so soon after the last one continues it: its pauses go on growing.
_STABLE_SECONDS = 10.0


class State(IntEnum):
    """What a circuit breaker lets through: all, only its probe, nothing."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class CircuitBreaker:
    """The state of a server, by what came of asking it.

    The first failure opens the breaker, and so does the last of `SLOW_IN_A_ROW` slow answers. Only
    the one probe that `begin_probe` announces closes it again; until then each failed probe doubles
    the pause before the next, at most to `LONGEST_PAUSE_SECONDS`. What requests that were already
    under way report meanwhile changes nothing.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[State], None] = lambda state: None,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._closed_since = -_STABLE_SECONDS
        self._slow = 0
        self.state = State.CLOSED
        self.pause_seconds = FIRST_PAUSE_SECONDS
        """How long to wait before the next probe."""

    @property
    def closed(self) -> bool:
        """Whether requests may go through."""
        return self.state is State.CLOSED

    def succeeded(self, *, slow: bool = False) -> bool:
        """A request was answered. Gives whether the breaker opened for slowness."""
        if self.state is not State.CLOSED:
            return False
        self._slow = self._slow + 1 if slow else 0
        return self._slow >= SLOW_IN_A_ROW and self.failed()

    def failed(self) -> bool:
        """A request failed. Gives whether that opened the breaker."""
        if self.state is not State.CLOSED:
            return False
        if self._clock() - self._closed_since >= _STABLE_SECONDS:
            self.pause_seconds = FIRST_PAUSE_SECONDS
        else:
            self._lengthen()
        self._become(State.OPEN)
        return True

    def begin_probe(self) -> None:
        """The pause is over and one request finds out."""
        if self.state is State.OPEN:
            self._become(State.HALF_OPEN)

    def probe_succeeded(self) -> None:
        """The probe was answered: all may go through."""
        if self.state is State.HALF_OPEN:
            self._slow = 0
            self._closed_since = self._clock()
            self._become(State.CLOSED)

    def probe_failed(self) -> None:
        """The probe was not answered well: wait longer."""
        if self.state is State.HALF_OPEN:
            self._lengthen()
            self._become(State.OPEN)

    def _lengthen(self) -> None:
        self.pause_seconds = min(2 * self.pause_seconds, LONGEST_PAUSE_SECONDS)

    def _become(self, state: State) -> None:
        self.state = state
        self._on_change(state)
