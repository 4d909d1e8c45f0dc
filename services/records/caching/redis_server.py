"""A Redis server that may fail: who asks waits a bounded time, and not at all while it is down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
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
from services.records.caching.metrics import (
    BREAKER_OPENED,
    BREAKER_STATE,
    CACHE_REQUESTS,
    REDIS_SECONDS,
)

SLOW_SECONDS = 0.2
"""An answer that takes longer, not counting what its bytes take, is a slow one."""

# Errors that say that the server reads but does not write; all others end the use of it.
_WRITES_REFUSED = ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "NOPERM")
_PROBE_KEY = "neuropil:probe"

_log = structlog.get_logger(__name__)

Settle = Callable[[Connection], Awaitable[bool]]
"""What has to be done on a new connection before it is used; False where that failed."""


class RedisServer:
    """One connection for reads and one for writes, behind a circuit breaker each.

    A full server still answers, so writing may stop alone. Whoever asks while a breaker is open
    goes on at once without the server; meanwhile a probe in the background finds out when it is
    back.
    """

    def __init__(self, url: str, settle: Settle, *, clock: Callable[[], float]) -> None:
        self._address = Address.parse(url)
        self._settle = settle
        self._readable = CircuitBreaker(clock=clock, on_change=BREAKER_STATE.labels("read").set)
        self._writable = CircuitBreaker(clock=clock, on_change=BREAKER_STATE.labels("write").set)
        BREAKER_STATE.labels("read").set(self._readable.state)
        BREAKER_STATE.labels("write").set(self._writable.state)
        self._reads: Connection | None = None
        self._writes: Connection | None = None
        self._opening: dict[str, asyncio.Task[Connection | None]] = {}
        self._recovery: asyncio.Task[None] | None = None

    @property
    def readable(self) -> bool:
        """Whether the server is asked."""
        return self._readable.closed

    @property
    def writable(self) -> bool:
        """Whether writes are tried."""
        return self._writable.closed

    def begin(self) -> None:
        """Connect in the background, so that the log tells of a server that can't be used."""
        if self._reads is None and self._readable.closed:
            self._opening_of("reads")

    async def read(self, command: str, encoded: bytes) -> Any:
        """The server's reply, or a ConnectionFailed, in which case the breaker knows already."""
        connection = self._reads
        if connection is None:
            connection = await self._opened("reads") if self._readable.closed else None
            if connection is None:
                CACHE_REQUESTS.labels("redis", "skipped").inc()
                return ConnectionFailed("not asked")
        started, asked_at = time.perf_counter(), connection.now()
        value = await connection.send_parts([encoded])
        REDIS_SECONDS.labels(command).observe(time.perf_counter() - started)
        if isinstance(value, ConnectionFailed):
            CACHE_REQUESTS.labels("redis", "error").inc()
            if connection is self._reads:
                self.failed(str(value))
            return value
        seconds = connection.now() - asked_at
        if self._readable.succeeded(slow=seconds > SLOW_SECONDS + transfer_seconds(value)):
            self._opened_for(f"it took {seconds:.3f} s to answer")
        return value

    async def write(self, encoded: Sequence[Sequence[bytes]]) -> list[Any]:
        """The server's replies to several commands, None for each that was not sent."""
        connection = self._writes
        if connection is None:
            connection = await self._opened("writes") if self._readable.closed else None
            if connection is None:
                return [None] * len(encoded)
        started = time.perf_counter()
        replies: list[Any] = await asyncio.gather(*map(connection.send_parts, encoded))
        REDIS_SECONDS.labels("write").observe(time.perf_counter() - started)
        if connection is self._writes:
            for reply in replies:
                if isinstance(reply, ConnectionFailed):
                    self.failed(str(reply))
                    break
        return replies

    def failed(self, reason: str) -> None:
        """The server is not to be used until it has recovered."""
        if self._readable.failed():
            self._opened_for(reason)

    def refuses_writes(self, reply: object) -> bool:
        """Whether a reply says that the server takes no writes; then none is tried for a while."""
        refused = isinstance(reply, hiredis.ReplyError) and error_code(reply) in _WRITES_REFUSED
        if refused and self._writable.failed():
            BREAKER_OPENED.labels("write").inc()
            _log.warning(
                "shared_cache_writes_refused", code=error_code(reply), instead="only reading"
            )
            self.recover()
        return refused

    def recover(self) -> None:
        """Find out in the background when the server is back, then do what has to be done first."""
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._probe_until_closed())

    async def close(self) -> None:
        """Close the connections; what is under way fails."""
        tasks = [*self._opening.values(), *([self._recovery] if self._recovery else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in (self._reads, self._writes):
            if connection is not None:
                connection.close()

    async def _opened(self, which: str) -> Connection | None:
        """The connection for reads or for writes, opened once for all who ask meanwhile."""
        return await asyncio.shield(self._opening_of(which))

    def _opening_of(self, which: str) -> asyncio.Task[Connection | None]:
        opening = self._opening.get(which)
        if opening is None:
            opening = self._opening[which] = asyncio.create_task(self._open(which))
            opening.add_done_callback(lambda _: self._opening.pop(which))
        return opening

    async def _open(self, which: str) -> Connection | None:
        try:
            connection = await connect(self._address)
        except ConnectionFailed as error:
            self.failed(str(error))
            return None
        if which == "reads":
            self._reads = connection
        else:
            self._writes = connection
        return connection

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
        self.recover()

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
                await self._settle(self._reads)
        finally:
            self._recovery = None

    async def _probe_reads(self) -> bool:
        """Whether a new connection answers; then it is the one that is used."""
        try:
            connection = await connect(self._address)
        except ConnectionFailed:
            return False
        asked_at = connection.now()
        value = await connection.send_parts([commands.get(_PROBE_KEY)])
        good = value is None or isinstance(value, bytes)
        in_time = connection.now() - asked_at < SLOW_SECONDS
        if good and in_time and await self._settle(connection):
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
