"""Replies in memory, bounded in bytes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import Final

from services.records.caching.lifetimes import scattered
from services.records.caching.metrics import MEMORY_BYTES, MEMORY_ENTRIES, MEMORY_EVICTIONS

# What an entry costs besides the characters of its key and the bytes of its reply, measured on
# CPython 3.11 and rounded up.
ENTRY_BYTES = 400


class Missing(Enum):
    """The answer where it is known that there is nothing."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING


class ReplyMemory:
    """The most recently used replies, of at most `max_bytes` together with their keys.

    A reply is given out as it is kept, never copied. One that alone is larger is not kept.
    """

    def __init__(self, max_bytes: int, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._timer = timer
        # Of a key: its reply, when it ends, what it takes.
        self._entries: OrderedDict[str, tuple[bytes | Missing, float, int]] = OrderedDict()
        self.num_bytes = 0
        """Bytes that the entries take, as they are counted."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> bytes | Missing | None:
        """What is kept for `key`; None where nothing is."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[1] <= self._timer():
            self.drop(key)
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def keep(self, key: str, reply: bytes | Missing, ttl_seconds: float) -> None:
        """Keep a reply for so long, up to a tenth less, or until others need its room."""
        self._remove(key)
        # A character may take four bytes.
        text = len(key) if key.isascii() else 4 * len(key)
        size = ENTRY_BYTES + text + (0 if reply is MISSING else len(reply))
        if size <= self._max_bytes:
            while self.num_bytes + size > self._max_bytes:
                _, (_, _, evicted) = self._entries.popitem(last=False)
                self.num_bytes -= evicted
                MEMORY_EVICTIONS.inc()
            self._entries[key] = (reply, self._timer() + scattered(ttl_seconds), size)
            self.num_bytes += size
        self._tell()

    def drop(self, key: str) -> None:
        """Forget what is kept for `key`."""
        self._remove(key)
        self._tell()

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_bytes -= entry[2]

    def _tell(self) -> None:
        MEMORY_BYTES.set(self.num_bytes)
        MEMORY_ENTRIES.set(len(self._entries))
