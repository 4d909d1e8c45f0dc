"""Replies in memory, in front of a shared cache, in front of whatever makes them.

A reply is the serialized answer: a hit goes to the wire unparsed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from services.records.caching.memory import MISSING, Missing, ReplyMemory
from services.records.caching.metrics import CACHE_LOADS, CACHE_REQUESTS, FLIGHT_WAITS
from services.records.caching.shared_cache import SharedCache
from services.records.caching.values import Lease

MISSING_TTL_SECONDS = 5.0
"""How long it is remembered at most that there is nothing: files may appear at any time."""

_HIT = CACHE_REQUESTS.labels("memory", "hit")
_HIT_MISSING = CACHE_REQUESTS.labels("memory", "missing")
_MISS = CACHE_REQUESTS.labels("memory", "miss")
_WAITED = FLIGHT_WAITS.labels("process")

Load = Callable[[], Awaitable[bytes | None]]


class ReplyCache:
    """Serialized replies by key.

    Memory holds at most `memory_bytes`, the least recently used leave first. However many ask for
    a key at once, in this process and in others that share the cache, its reply is loaded once;
    who stops waiting does not stop the others. What is missing is remembered briefly, an error not
    at all.
    """

    def __init__(
        self,
        memory_bytes: int,
        shared: SharedCache | None = None,
        *,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = ReplyMemory(memory_bytes, timer=timer)
        self._shared = shared
        self._flights: dict[str, asyncio.Task[bytes | None]] = {}
        self._times_forgotten = 0
        # Memory and the shared cache may each remember it half of the time.
        self._missing_ttl = MISSING_TTL_SECONDS / (1 if shared is None else 2)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the entries in memory take, as they are counted."""
        return self._memory.num_bytes

    def peek(self, key: str) -> bytes | Missing | None:
        """What memory has for `key`, at once: a reply, or MISSING where it is known that there is
        none. None: only `get` can tell."""
        found = self._memory.get(key)
        if found is not None:
            (_HIT_MISSING if found is MISSING else _HIT).inc()
        return found

    async def get(
        self,
        key: str,
        load: Load,
        *,
        ttl_seconds: float,
        memory_ttl_seconds: float | None = None,
        not_shared: bool = False,
    ) -> bytes | None:
        """The reply for `key`, made by `load` where no cache has it; None where there is nothing.

        `memory_ttl_seconds` is for replies that change: how long memory keeps them, and so how long
        this process may answer what another one has changed. `not_shared` says that the shared
        cache has been asked already and has nothing.
        """
        found = self.peek(key)
        if found is not None:
            return None if isinstance(found, Missing) else found
        _MISS.inc()
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(
                self._fill(key, load, ttl_seconds, memory_ttl_seconds, not_shared)
            )
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        else:
            _WAITED.inc()
        return await asyncio.shield(flight)

    async def prefetch(self, keys: Sequence[str], *, ttl_seconds: float) -> set[str]:
        """Bring what the shared cache has of `keys` into memory; gives the keys it has not."""
        if self._shared is None:
            return set()
        wanted = [key for key in dict.fromkeys(keys) if self._memory.get(key) is None]
        times_forgotten = self._times_forgotten
        found = await self._shared.find_many(wanted)
        # What was forgotten or loaded meanwhile is newer than what was found.
        if self._times_forgotten == times_forgotten:
            for key, reply in found.items():
                if self._memory.get(key) is None:
                    self._remember(key, reply, ttl_seconds)
        return {key for key in wanted if key not in found}

    async def forget(self, key: str) -> None:
        """Drop a reply here and in the shared cache; a load under way will not be remembered."""
        self._drop(key)
        if self._shared is not None:
            await self._shared.delete(key)
            # Whoever asked before that may have brought the old reply back from there.
            self._drop(key)

    async def close(self) -> None:
        """End the loads under way and close the shared cache."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        if self._shared is not None:
            await self._shared.close()

    async def _fill(
        self,
        key: str,
        load: Load,
        ttl_seconds: float,
        memory_ttl_seconds: float | None,
        not_shared: bool,
    ) -> bytes | None:
        shared, lease = self._shared, None
        changes = memory_ttl_seconds is not None
        memory_ttl = min(ttl_seconds, memory_ttl_seconds or ttl_seconds)
        # With leases it is asked again, as that takes the lease where there is still nothing.
        if shared is not None and (shared.leasing or not not_shared):
            found = await shared.find(key)
            if isinstance(found, Lease):
                lease = found
            elif found is not None:
                if self._is_current(key):
                    self._remember(key, found, memory_ttl)
                return None if isinstance(found, Missing) else found
        if shared is None or lease is None:
            reply = await self._load(load)
        else:
            reply = await self._load_for_all(shared, lease, load)
        if self._is_current(key):
            self._remember(key, MISSING if reply is None else reply, memory_ttl)
            # Without a lease it can't be told whether the reply was dropped since it was loaded.
            if shared is not None and (lease is not None or not changes):
                shared_ttl = min(self._missing_ttl, ttl_seconds) if reply is None else ttl_seconds
                shared.put(key, reply, shared_ttl, lease)
        return reply

    async def _load(self, load: Load) -> bytes | None:
        outcome = "error"
        try:
            reply = await load()
            outcome = "missing" if reply is None else "found"
            return reply
        finally:
            CACHE_LOADS.labels(outcome).inc()

    async def _load_for_all(self, shared: SharedCache, lease: Lease, load: Load) -> bytes | None:
        stop_keeping = shared.keep(lease)
        try:
            return await self._load(load)
        except BaseException:
            shared.give_up(lease)
            raise
        finally:
            stop_keeping()

    def _drop(self, key: str) -> None:
        self._times_forgotten += 1
        self._flights.pop(key, None)
        self._memory.drop(key)

    def _is_current(self, key: str) -> bool:
        """Whether the running flight is still the one whose reply counts."""
        return self._flights.get(key) is asyncio.current_task()

    def _remember(self, key: str, reply: bytes | Missing, ttl_seconds: float) -> None:
        if reply is MISSING:
            ttl_seconds = min(self._missing_ttl, ttl_seconds)
        self._memory.keep(key, reply, ttl_seconds)

    def _landed(self, key: str, flight: asyncio.Task[bytes | None]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.cancelled():
            # All who waited may be gone; then nobody else takes the error off the task.
            flight.exception()
