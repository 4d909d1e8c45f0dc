"""Replies in memory, in front of a shared cache, in front of whatever makes them.

A reply is the serialized answer: a hit goes to the wire unparsed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cachetools import TLRUCache

from services.records.caching.metrics import CACHE_REQUESTS
from services.records.caching.shared_cache import SharedCache

MISSING_TTL_SECONDS = 5.0
"""How long it is remembered that there is nothing: files may appear at any time."""

# What an entry costs besides its key and reply, measured on CPython 3.11 and rounded up.
_ENTRY_BYTES = 400

_MEMORY_HITS = CACHE_REQUESTS.labels("memory", "hit")

Load = Callable[[], Awaitable[bytes | None]]


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str
    reply: bytes | None
    ttl_seconds: float

    @property
    def size(self) -> int:
        return _ENTRY_BYTES + len(self.key) + len(self.reply or b"")


class ReplyCache:
    """Serialized replies by key.

    Memory holds at most `memory_bytes`, the least recently used leave first. However many ask for
    a key at once, its reply is loaded once; who stops waiting does not stop the others. What is
    missing is remembered briefly, an error not at all.
    """

    def __init__(
        self,
        memory_bytes: int,
        shared: SharedCache | None = None,
        *,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory: TLRUCache[str, _Entry] = TLRUCache(
            maxsize=memory_bytes,
            ttu=lambda key, entry, now: now + entry.ttl_seconds,
            timer=timer,
            getsizeof=lambda entry: entry.size,
        )
        self._shared = shared
        self._flights: dict[str, asyncio.Task[bytes | None]] = {}

    @property
    def memory_bytes(self) -> int:
        """Bytes that the entries in memory take, as they are counted."""
        return int(self._memory.currsize)

    async def get(
        self, key: str, load: Load, *, ttl_seconds: float, not_shared: bool = False
    ) -> bytes | None:
        """The reply for `key`, made by `load` where no cache has it; None where there is nothing.

        `not_shared` says that the shared cache has been asked already and has nothing.
        """
        entry = self._memory.get(key)
        if entry is not None:
            CACHE_REQUESTS.labels("memory", "hit").inc()
            return entry.reply
        CACHE_REQUESTS.labels("memory", "miss").inc()
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._fill(key, load, ttl_seconds, not_shared))
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(flight)

    def peek(self, key: str) -> bytes | None:
        """The reply for `key` where it is in memory; None says nothing of what `get` would give."""
        entry = self._memory.get(key)
        if entry is None or entry.reply is None:
            return None
        _MEMORY_HITS.inc()
        return entry.reply

    async def prefetch(self, keys: Sequence[str], *, ttl_seconds: float) -> set[str]:
        """Bring what the shared cache has of `keys` into memory; gives the keys it has not."""
        if self._shared is None:
            return set()
        wanted = [key for key in dict.fromkeys(keys) if key not in self._memory]
        replies = await self._shared.get_many(wanted)
        for key, reply in zip(wanted, replies, strict=True):
            if reply is not None:
                self._remember(_Entry(key, reply, ttl_seconds))
        return {key for key, reply in zip(wanted, replies, strict=True) if reply is None}

    async def forget(self, key: str) -> None:
        """Drop a reply everywhere; a load under way will not be remembered."""
        self._flights.pop(key, None)
        self._memory.pop(key, None)
        if self._shared is not None:
            await self._shared.delete(key)

    async def close(self) -> None:
        """End the loads under way and close the shared cache."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        if self._shared is not None:
            await self._shared.close()

    async def _fill(
        self, key: str, load: Load, ttl_seconds: float, not_shared: bool
    ) -> bytes | None:
        if self._shared is not None and not not_shared:
            reply = await self._shared.get(key)
            if reply is not None:
                self._remember_own(_Entry(key, reply, ttl_seconds))
                return reply
        reply = await load()
        if reply is None:
            self._remember_own(_Entry(key, None, min(MISSING_TTL_SECONDS, ttl_seconds)))
        elif self._remember_own(_Entry(key, reply, ttl_seconds)) and self._shared is not None:
            await self._shared.put(key, reply, ttl_seconds)
            if not self._is_current(key):
                # Dropped while it was put there: that may have come after the deletion.
                await self._shared.delete(key)
        return reply

    def _is_current(self, key: str) -> bool:
        """Whether the running flight is still the one whose reply counts."""
        return self._flights.get(key) is asyncio.current_task()

    def _remember_own(self, entry: _Entry) -> bool:
        """Remember what the running flight found, unless its key was dropped since."""
        current = self._is_current(entry.key)
        if current:
            self._remember(entry)
        return current

    def _remember(self, entry: _Entry) -> None:
        if entry.size <= self._memory.maxsize:
            self._memory[entry.key] = entry

    def _landed(self, key: str, flight: asyncio.Task[bytes | None]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.cancelled():
            # All who waited may be gone; then nobody else takes the error off the task.
            flight.exception()
