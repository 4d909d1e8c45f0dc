"""How long calls wait: a pause that all calls of a server keep, and growing waits between tries."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 20.0
LONGEST_PAUSE_SECONDS = 120.0
"""A server that asks for more is not waited for; the caller is told how long it asks for, and after
this time the next call finds out whether it still does."""
_SPREAD = 0.1
"""Calls go on within this share of the pause after it, so that they don't all come at once."""


class Pause:
    """Until when a server asked to be left alone."""

    def __init__(self) -> None:
        self._until = 0.0
        self._seconds = 0.0

    def ask(self, seconds: float) -> None:
        """Let every call wait so long from now, `LONGEST_PAUSE_SECONDS` at most."""
        seconds = min(seconds, LONGEST_PAUSE_SECONDS)
        until = time.monotonic() + seconds
        if until > self._until:
            self._until, self._seconds = until, seconds

    @property
    def seconds_left(self) -> float:
        """How long it still lasts."""
        return max(0.0, self._until - time.monotonic())

    async def wait(self) -> None:
        """Return when it is over, even where it is made longer meanwhile."""
        while True:
            left = self.seconds_left
            if not left:
                return
            # Timing only: nothing depends on these numbers being hard to guess.
            await asyncio.sleep(left + random.uniform(0, _SPREAD * self._seconds))


def wait_before(attempt: int) -> float:
    """Seconds to wait before an attempt (1 is the first repetition), anywhere up to a bound."""
    bound = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1))
    return random.uniform(bound / 4, bound)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the headers of an answer ask to wait; None where they don't say."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if not text:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            seconds = _until(text)
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _until(date: str) -> float:
    try:
        moment = parsedate_to_datetime(date)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return -1.0
