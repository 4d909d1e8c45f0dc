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
from services.records.caching.breaker import CircuitBreaker
from services.records.caching.connection import (
    Address,
    Connection,
    ConnectionFailed,
    connect,
    error_code,
    transfer_seconds,
)
from services.records.caching.memory import MISSING, Missing
from services.records.caching.metrics import (
    BREAKER_OPENED,
    BREAKER_STATE,
    CACHE_REQUESTS,
    FLIGHT_WAITS,
    LEASES,
    PUTS,
    REDIS_SECONDS,
)
from services.records.caching.values import Lease, Note, decode, mark_of
from services.records.caching.write_queue import WriteQueue

LONGEST_WAIT_SECONDS = 5.0
"""How long another replica's load is waited for; then a reply is loaded here as well."""

SLOW_SECONDS = 0.2
"""An answer that takes longer, not counting what its bytes take, is a slow one."""

FLUSH_SECONDS = 0.5
"""How long closing waits for what is not written yet."""

_RENEW_SECONDS = commands.LEASE_SECONDS / 3
_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.002, 0.05
_BATCH_BYTES = 4 * 2**20
_MAX_BATCH_KEYS = 64
_MAX_OWED_DELETIONS = 10_000

# Errors that say that the server reads but does not write; all others end the use of it.
_WRITES_REFUSED = ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "NOPERM")
_PROBE_KEY = "neuropil:probe"

_HIT = CACHE_REQUESTS.labels("redis", "hit")
_log = structlog.get_logger(__name__)


class SharedCache:
    """Replies by key in a Redis server.

    Reading has a circuit breaker and writing another, as a full server still answers. Whoever asks
    while one is open goes on at once without the server; meanwhile a probe in the background finds
    out when it is back. Writes never keep an answer waiting.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = Address.parse(url)
        self._readable = CircuitBreaker(clock=clock, on_change=BREAKER_STATE.labels("read").set)
        self._writable = CircuitBreaker(clock=clock, on_change=BREAKER_STATE.labels("write").set)
        BREAKER_STATE.labels("read").set(self._readable.state)
        BREAKER_STATE.labels("write").set(self._writable.state)
        self._reads: Connection | None = None
        self._writes: Connection | None = None
        self._opening: dict[str, asyncio.Task[Connection | None]] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._queue = WriteQueue(self._write)
        self._owed: dict[str, None] = {}
        self._leasing = True
        self._typical_bytes = 64 * 1024.0

    @property
    def leasing(self) -> bool:
        """Whether replicas can agree on who loads a reply."""
        return self._leasing and self._readable.closed and self._writable.closed

    async def find(self, key: str) -> bytes | Missing | Lease | None:
        """The reply kept for `key`, or that there is none; else the lease to load it.

        While another replica loads it, its reply is waited for, a bounded time. None: load it
        without a lease.
        """
        if key in self._owed:
            # What the server has was changed since.
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
        """What is kept for several keys, by MGETs of a bounded size."""
        found: dict[str, bytes | Missing] = {}
        keys = [key for key in keys if key not in self._owed]
        position = 0
        while position < len(keys):
            count = max(1, min(_MAX_BATCH_KEYS, int(_BATCH_BYTES / self._typical_bytes)))
            chunk = list(keys[position : position + count])
            position += count
            values = await self._read("mget", commands.get_many(chunk))
            if not isinstance(values, list) or len(values) != len(chunk):
                self._read_refused(values, len(chunk))
                continue
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
        if not self._writable.closed or key in self._owed:
            PUTS.labels("skipped").inc()
        elif not self._queue.add(commands.store(key, reply, ttl_seconds, lease), self._stored):
            PUTS.labels("dropped").inc()
            if lease is not None:
                self.give_up(lease)

    def give_up(self, lease: Lease) -> None:
        """End a lease without a reply for the others."""
        if self._writable.closed:
            self._queue.add([commands.give_up(lease)], lambda reply: None, bounded=False)

    def keep(self, lease: Lease) -> Callable[[], None]:
        """Renew a lease until the function that is given is called."""
        loop = asyncio.get_running_loop()

        timer = loop.call_later(_RENEW_SECONDS, lambda: renew())

        def renew() -> None:
            nonlocal timer
            if self._writable.closed:
                self._queue.add([commands.renew(lease)], self._renewed, bounded=False)
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
                self._recover()
            done.set()

        if self._readable.closed:
            self._queue.add([commands.delete(key)], deleted, bounded=False)
        else:
            deleted(None)
        await done.wait()

    async def flush(self) -> None:
        """Wait until what was put is written, or failed."""
        await self._queue.drained()

    async def close(self) -> None:
        """Write what waits, within a bound, and close the connections."""
        if self._readable.closed:
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._queue.drained()
            except TimeoutError:
                _log.warning("shared_cache_closed_early", detail="replies were not written")
        await self._queue.close()
        tasks = [*self._opening.values(), *([self._recovery] if self._recovery else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in (self._reads, self._writes):
            if connection is not None:
                connection.close()

    async def _ask(self, key: str) -> bytes | Missing | Lease | Note | None:
        if self.leasing:
            lease = Lease(key, mark_of(secrets.token_bytes(12)))
            value = await self._read("get", commands.claim(lease))
            if value is None:
                LEASES.labels("granted").inc()
                CACHE_REQUESTS.labels("redis", "miss").inc()
                return lease
            if not isinstance(value, hiredis.ReplyError):
                return self._found(value)
            if str(value).startswith("ERR syntax"):
                self._leasing = False
                _log.warning("shared_cache_without_leases", detail="the server is older than 7.0")
            elif not self._writes_refused(value):
                self._read_refused(value)
                return None
        value = await self._read("get", commands.get(key))
        if isinstance(value, hiredis.ReplyError):
            self._read_refused(value)
            return None
        return self._found(value)

    def _found(self, value: object) -> bytes | Missing | Note | None:
        if isinstance(value, ConnectionFailed):
            return None
        reply = self._usable(value)
        return reply if not isinstance(reply, Note) or reply is Note.LOADING else None

    def _usable(self, value: object) -> bytes | Missing | Note | None:
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

    def _read_refused(self, value: object, count: int = 1) -> None:
        if isinstance(value, hiredis.ReplyError):
            CACHE_REQUESTS.labels("redis", "error").inc(count)
            # A key of another type is nobody's outage.
            if not str(value).startswith("WRONGTYPE"):
                self._failed(f"it answered {error_code(value)}")
        elif not isinstance(value, ConnectionFailed):
            CACHE_REQUESTS.labels("redis", "corrupt").inc(count)

    def _writes_refused(self, value: object) -> bool:
        refused = isinstance(value, hiredis.ReplyError) and error_code(value) in _WRITES_REFUSED
        if refused and self._writable.failed():
            BREAKER_OPENED.labels("write").inc()
            _log.warning(
                "shared_cache_writes_refused", code=error_code(value), instead="only reading"
            )
            self._recover()
        return refused

    async def _read(self, command: str, encoded: bytes) -> Any:
        """The server's reply, or a ConnectionFailed, in which case the breaker knows already."""
        connection = self._reads
        if connection is None:
            connection = await self._opened("reads") if self._readable.closed else None
            if connection is None:
                CACHE_REQUESTS.labels("redis", "skipped").inc()
                return ConnectionFailed("not asked")
        started = time.perf_counter()
        value = await connection.send_parts([encoded])
        seconds = time.perf_counter() - started
        REDIS_SECONDS.labels(command).observe(seconds)
        if isinstance(value, ConnectionFailed):
            CACHE_REQUESTS.labels("redis", "error").inc()
            if connection is self._reads:
                self._failed(str(value))
        elif self._readable.succeeded(slow=seconds > SLOW_SECONDS + transfer_seconds(value)):
            self._opened_for(f"it took {seconds:.3f} s to answer")
        return value

    async def _write(self, encoded: Sequence[Sequence[bytes]]) -> list[Any]:
        connection = self._writes
        if connection is None:
            connection = await self._opened("writes") if self._readable.closed else None
            if connection is None:
                return [None] * len(encoded)
        started = time.perf_counter()
        replies: list[Any] = await asyncio.gather(*map(connection.send_parts, encoded))
        REDIS_SECONDS.labels("write").observe(time.perf_counter() - started)
        for reply in replies:
            if isinstance(reply, ConnectionFailed):
                if connection is self._writes:
                    self._failed(str(reply))
                break
            if isinstance(reply, hiredis.ReplyError) and not self._writes_refused(reply):
                _log.warning("shared_cache_write_failed", code=error_code(reply))
        return replies

    async def _opened(self, which: str) -> Connection | None:
        """The connection for reads or for writes, opened once for all who ask meanwhile."""
        opening = self._opening.get(which)
        if opening is None:
            opening = self._opening[which] = asyncio.create_task(self._open(which))
            opening.add_done_callback(lambda _: self._opening.pop(which))
        return await asyncio.shield(opening)

    async def _open(self, which: str) -> Connection | None:
        try:
            connection = await connect(self._address)
        except ConnectionFailed as error:
            self._failed(str(error))
            return None
        if which == "reads":
            self._reads = connection
        else:
            self._writes = connection
        return connection

    def _failed(self, reason: str) -> None:
        if self._readable.failed():
            self._opened_for(reason)

    def _opened_for(self, reason: str) -> None:
        """Let all go on who wait for the server, and find out when it is back."""
        BREAKER_OPENED.labels("read").inc()
        _log.warning(
            "shared_cache_failed",
            server=str(self._address),
            error=reason,
            instead="reading files",
        )
        reads, self._reads = self._reads, None
        writes, self._writes = self._writes, None
        for connection in (reads, writes):
            if connection is not None:
                connection.close(reason)
        self._recover()

    def _recover(self) -> None:
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._probe_until_closed())

    async def _probe_until_closed(self) -> None:
        try:
            while not (self._readable.closed and self._writable.closed):
                breaker = self._writable if self._readable.closed else self._readable
                await asyncio.sleep(breaker.pause_seconds)
                breaker.begin_probe()
                good = await (
                    self._probe_writes() if breaker is self._writable else self._probe_reads()
                )
                if good:
                    breaker.probe_succeeded()
                    kind = "writes" if breaker is self._writable else "reads"
                    _log.info("shared_cache_recovered", what=kind)
                else:
                    breaker.probe_failed()
            if self._reads is not None:
                await self._delete_owed(self._reads)
        finally:
            self._recovery = None

    async def _probe_reads(self) -> bool:
        """Whether a new connection answers; then it is the one that is used."""
        try:
            connection = await connect(self._address)
        except ConnectionFailed:
            return False
        started = time.perf_counter()
        value = await connection.send_parts([commands.get(_PROBE_KEY)])
        good = value is None or isinstance(value, bytes)
        in_time = time.perf_counter() - started < SLOW_SECONDS
        if good and in_time and await self._delete_owed(connection):
            self._reads = connection
            return True
        connection.close()
        return False

    async def _probe_writes(self) -> bool:
        connection = self._reads
        if connection is None:
            return False
        value = await connection.send(b"SET", _PROBE_KEY.encode(), bytes(16), b"PX", b"1000")
        return bool(value == b"OK")

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

    def _stored(self, reply: object) -> None:
        if reply in (b"OK", 1):
            PUTS.labels("stored").inc()
        else:
            PUTS.labels("superseded" if reply == 0 else "error").inc()

    def _renewed(self, reply: object) -> None:
        if reply == 0:
            LEASES.labels("lost").inc()
