"""Time limits for others that a pause of our own event loop does not use up.

While a callback runs for long, nothing is read: an answer waits in the socket, and its sender is
not to blame. So time is counted in short steps, each by a timer of the event loop, and a step never
counts for more than its length, however late its timer runs. The loop looks at its sockets between
any two timers.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

STEP_SECONDS = 0.05


class LoopTime:
    """A clock that stands still while the event loop does something else.

    It runs from `start` on; `on_step` is called after each step, until `stop`.
    """

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_step = on_step
        self._seconds = 0.0
        self._step_began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """Seconds that have counted so far."""
        if self._timer is None:
            return self._seconds
        return self._seconds + min(self._loop.time() - self._step_began, STEP_SECONDS)

    def start(self) -> None:
        """Run; nothing happens where it runs already."""
        if self._timer is None:
            self._begin_step()

    def stop(self) -> None:
        """Stand still."""
        if self._timer is not None:
            self._seconds = self.now()
            self._timer.cancel()
            self._timer = None

    def _begin_step(self) -> None:
        self._step_began = self._loop.time()
        self._timer = self._loop.call_later(STEP_SECONDS, self._end_step)

    def _end_step(self) -> None:
        self._seconds += STEP_SECONDS
        self._begin_step()
        self._on_step()


@asynccontextmanager
async def loop_timeout(seconds: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, in the time of `LoopTime`."""
    ends_at = math.ceil(seconds / STEP_SECONDS) * STEP_SECONDS

    def look() -> None:
        # The sum of many steps is not exactly their product.
        if clock.now() > ends_at - STEP_SECONDS / 2:
            clock.stop()
            limit.reschedule(asyncio.get_running_loop().time())

    clock = LoopTime(look)
    async with asyncio.timeout(None) as limit:
        clock.start()
        try:
            yield
        finally:
            clock.stop()
