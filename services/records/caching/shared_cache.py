"""Replies kept in a Redis server that several processes share. It may fail: then it is as empty."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
import structlog

from services.records.caching import commands
from services.records.caching.connection import Connection, ConnectionFailed, error_code
from services.records.caching.memory import MISSING, Missing
from services.records.caching.metrics import CACHE_REQUESTS, FLIGHT_WAITS, LEASES, PUTS
from services.records.caching.redis_server import RedisServer
from services.records.caching.refusals import RefusedCommands
from services.records.caching.values import Lease, Note, decode, mark_of
from services.records.caching.write_queue import WriteQueue

LONGEST_WAIT_SECONDS = 5.0
"""How long another replica's load is waited for; then a reply is loaded here as well."""

FLUSH_SECONDS = 0.5
"""How long closing waits for what is not written yet."""

_RENEW_SECONDS = commands.LEASE_SECONDS / 3
_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.002, 0.05
_BATCH_BYTES = 4 * 2**20
_MAX_BATCH_KEYS = 64
_MAX_OWED_DELETIONS = 10_000

_WITHOUT_LEASES = "each replica loads for itself"
# What is done while the server does not allow a command.
_OTHERWISE = {
    "GET": "reading files",
    "MGET": "one key after the other",
    "SET": "only reading",
    "EVAL": _WITHOUT_LEASES,
    "DEL": "what was written here is read from files only",
}

_HIT = CACHE_REQUESTS.labels("redis", "hit")
_log = structlog.get_logger(__name__)


class SharedCache:
    """Replies by key in a Redis server.

    A look-up waits a bounded time for the server and goes on without it where that fails. Writes
    never keep an answer waiting.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = RedisServer(url, self._delete_owed, clock=clock)
        self._refused = RefusedCommands(clock=clock)
        self._queue = WriteQueue(self._server.write)
        self._owed: dict[str, None] = {}
        self._leasing = True
        self._typical_bytes = 64 * 1024.0

    def begin(self) -> None:
        """Connect in the background; a server that can't be used is warned of, and tried again.

        Needless before a look-up, which connects as well: but who operates the service is told when
        it starts, and not when it is first read from.
        """
        self._server.begin()

    @property
    def leasing(self) -> bool:
        """Whether replicas can agree on who loads a reply."""
        usable = self._leasing and self._server.readable and self._server.writable
        return usable and self._refused.allows("SET NX GET") and self._refused.allows("EVAL")

    async def find(self, key: str) -> bytes | Missing | Lease | None:
        """The reply kept for `key`, or that there is none; else the lease to load it.

        While another replica loads it, its reply is waited for, a bounded time. None: load it
        without a lease.
        """
        # What is owed was changed since the server got it.
        if key in self._owed or not self._refused.allows("GET"):
            return None
        waited_since = None
        pause = _FIRST_POLL_SECONDS
        while True:
            found = await self._ask(key)
            if not isinstance(found, Note):
                return found
            now = time.monotonic()
            if waited_since is None:
                waited_since = now
                FLIGHT_WAITS.labels("replica").inc()
                LEASES.labels("busy").inc()
            elif now - waited_since > LONGEST_WAIT_SECONDS:
                LEASES.labels("waited_too_long").inc()
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL_SECONDS)

    async def find_many(self, keys: Sequence[str]) -> dict[str, bytes | Missing]:
        """What is kept for several keys, by MGETs of a bounded size.

        A server that allows no MGET is asked for one key after the other.
        """
        found: dict[str, bytes | Missing] = {}
        keys = [key for key in keys if key not in self._owed]
        position = 0
        while position < len(keys):
            count = max(1, min(_MAX_BATCH_KEYS, int(_BATCH_BYTES / self._typical_bytes)))
            chunk = list(keys[position : position + count])
            position += count
            if self._refused.allows("MGET"):
                values = await self._server.read("mget", commands.get_many(chunk))
                if not isinstance(values, list) or len(values) != len(chunk):
                    self._read_refused("MGET", values, len(chunk))
                    if self._refused.allows("MGET"):
                        continue
            if not self._refused.allows("MGET"):
                values = await asyncio.gather(*map(self._get, chunk))
            for key, value in zip(chunk, values, strict=True):
                reply = self._usable(value)
                if isinstance(reply, bytes | Missing):
                    found[key] = reply
        return found

    def put(
        self, key: str, reply: bytes | None, ttl_seconds: float, lease: Lease | None = None
    ) -> None:
        """Keep a reply, or that there is none, for about so long; in the background.

        With a lease only if it still holds.
        """
        if not self._server.writable or key in self._owed:
            PUTS.labels("skipped").inc()
            return
        if lease is not None and not self._refused.allows("EVAL"):
            PUTS.labels("skipped").inc()
            self._unmark(lease)
            return

        def stored(answer: object) -> None:
            if answer in (b"OK", 1):
                PUTS.labels("stored").inc()
            else:
                PUTS.labels("superseded" if answer == 0 else "error").inc()
            if lease is not None and not self._refused.allows("EVAL"):
                self._unmark(lease)

        command = "SET" if lease is None else "EVAL"
        if not self._write(command, commands.store(key, reply, ttl_seconds, lease), stored):
            PUTS.labels("dropped").inc()
            if lease is not None:
                self.give_up(lease)

    def give_up(self, lease: Lease) -> None:
        """End a lease without a reply for the others."""

        def told(answer: object) -> None:
            if not self._refused.allows("EVAL"):
                self._unmark(lease)

        if not self._server.writable:
            return
        if self._refused.allows("EVAL"):
            self._write("EVAL", [commands.give_up(lease)], told, bounded=False)
        else:
            self._unmark(lease)

    def keep(self, lease: Lease) -> Callable[[], None]:
        """Renew a lease until the function that is given is called."""
        loop = asyncio.get_running_loop()

        timer = loop.call_later(_RENEW_SECONDS, lambda: renew())

        def renewed(reply: object) -> None:
            if reply == 0:
                LEASES.labels("lost").inc()

        def renew() -> None:
            nonlocal timer
            if self._server.writable and self._refused.allows("EVAL"):
                self._write("EVAL", [commands.renew(lease)], renewed, bounded=False)
            timer = loop.call_later(_RENEW_SECONDS, renew)

        return lambda: timer.cancel()

    async def delete(self, key: str) -> None:
        """Forget a reply, and who is loading it, before this returns.

        A server that can't be reached forgets it before it is used again.
        """
        done = asyncio.Event()

        def deleted(reply: object) -> None:
            if not isinstance(reply, int) and len(self._owed) < _MAX_OWED_DELETIONS:
                self._owed[key] = None
                self._server.recover()
            done.set()

        if self._server.readable:
            self._write("DEL", [commands.delete(key)], deleted, bounded=False)
        else:
            deleted(None)
        await done.wait()

    async def flush(self) -> None:
        """Wait until what was put is written, or failed."""
        await self._queue.drained()

    async def close(self) -> None:
        """Write what waits, within a bound, and close the connections."""
        if self._server.readable:
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._queue.drained()
            except TimeoutError:
                _log.warning("shared_cache_closed_early", detail="replies were not written")
        await self._queue.close()
        await self._server.close()

    async def _ask(self, key: str) -> bytes | Missing | Lease | Note | None:
        if self.leasing:
            lease = Lease(key, mark_of(secrets.token_bytes(12)))
            value = await self._server.read("get", commands.claim(lease))
            if value is None:
                LEASES.labels("granted").inc()
                CACHE_REQUESTS.labels("redis", "miss").inc()
                return lease
            if not isinstance(value, hiredis.ReplyError):
                return self._found(value)
            if str(value).startswith("ERR syntax"):
                self._leasing = False
                _log.warning("shared_cache_without_leases", detail="the server is older than 7.0")
            elif not self._refused.refuses("SET NX GET", value, instead=_WITHOUT_LEASES) and (
                not self._server.refuses_writes(value)
            ):
                self._read_refused("SET", value)
                return None
        return self._found(await self._get(key))

    async def _get(self, key: str) -> object:
        if not self._refused.allows("GET"):
            return ConnectionFailed("not allowed")
        value = await self._server.read("get", commands.get(key))
        if isinstance(value, hiredis.ReplyError):
            self._read_refused("GET", value)
            return ConnectionFailed("refused")
        return value

    def _found(self, value: object) -> bytes | Missing | Note | None:
        reply = self._usable(value)
        return reply if not isinstance(reply, Note) or reply is Note.LOADING else None

    def _usable(self, value: object) -> bytes | Missing | Note | None:
        if isinstance(value, ConnectionFailed):
            return None
        if value is None:
            CACHE_REQUESTS.labels("redis", "miss").inc()
            return None
        reply = decode(value)
        if isinstance(reply, bytes):
            _HIT.inc()
            self._typical_bytes += (len(reply) - self._typical_bytes) / 8
        elif reply is Note.MISSING:
            CACHE_REQUESTS.labels("redis", "missing").inc()
            return MISSING
        elif reply is Note.CORRUPT:
            CACHE_REQUESTS.labels("redis", "corrupt").inc()
        return reply

    def _read_refused(self, command: str, value: object, count: int = 1) -> None:
        if isinstance(value, hiredis.ReplyError):
            CACHE_REQUESTS.labels("redis", "error").inc(count)
            if self._refused.refuses(command, value, instead=_OTHERWISE[command]):
                return
            # A key of another type is nobody's outage.
            if not str(value).startswith("WRONGTYPE"):
                self._server.failed(f"it answered {error_code(value)}")
        elif not isinstance(value, ConnectionFailed):
            CACHE_REQUESTS.labels("redis", "corrupt").inc(count)

    def _write(
        self,
        command: str,
        encoded: Sequence[bytes],
        done: Callable[[Any], None],
        *,
        bounded: bool = True,
    ) -> bool:
        """Queue a command; False where the queue is full. `done` gets what came of it."""

        def answered(reply: Any) -> None:
            if isinstance(reply, hiredis.ReplyError):
                # Of what else is not allowed nothing is lost; without SET there are no writes.
                named = command != "SET" and self._refused.refuses(
                    command, reply, instead=_OTHERWISE[command]
                )
                if not named and not self._server.refuses_writes(reply):
                    _log.warning("shared_cache_write_failed", code=error_code(reply))
            done(reply)

        return self._queue.add(encoded, answered, bounded=bounded)

    def _unmark(self, lease: Lease) -> None:
        """Let others go on who wait for a lease that no script can end."""
        if self._server.writable and self._refused.allows("DEL"):
            self._write("DEL", [commands.delete(lease.key)], lambda reply: None, bounded=False)

    async def _delete_owed(self, connection: Connection) -> bool:
        """Drop what was forgotten meanwhile; False where the connection failed over it."""
        while self._owed:
            key = next(iter(self._owed))
            reply = await connection.send_parts([commands.delete(key)])
            if not isinstance(reply, int):
                # A server that takes no writes may have them refused: reading goes on.
                return not isinstance(reply, ConnectionFailed)
            self._owed.pop(key, None)
        return True
