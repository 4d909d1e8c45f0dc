"""Answers that wait for slow readers, bounded in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import ResourceExhausted

MAX_UNREAD_BYTES = 1 << 30
_RETRY_AFTER_SECONDS = 5.0


class UnreadAnswers:
    """What streams hold until their clients have read it; the event loop alone uses it.

    A single answer may be larger than the bound where no other waits.
    """

    def __init__(self, limit_bytes: int = MAX_UNREAD_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        """What waits now."""
        return self._n_bytes

    @contextmanager
    def held(self, n_bytes: int) -> Iterator[None]:
        """Counts an answer while it is sent; ResourceExhausted where others leave it no room."""
        if self._n_bytes and self._n_bytes + n_bytes > self._limit_bytes:
            raise ResourceExhausted(
                f"answers of {self._n_bytes} bytes wait for their readers, and this one takes "
                f"{n_bytes}; together they may take {self._limit_bytes}. Try again later",
                reason="QUEUE_FULL",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
                metadata={"bytes": str(n_bytes), "limit_bytes": str(self._limit_bytes)},
            )
        self._n_bytes += n_bytes
        try:
            yield
        finally:
            self._n_bytes -= n_bytes
