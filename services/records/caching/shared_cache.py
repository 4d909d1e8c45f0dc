"""Replies kept in a Redis server that several processes share. It may fail: then it is as empty."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.records.caching.metrics import CACHE_REQUESTS

TIMEOUT_SECONDS = 0.5
MAX_CONNECTIONS = 64
LONGEST_PAUSE_SECONDS = 10.0

# Of a stored value: magic and version, then CRC-32 of the reply, then the reply.
_MAGIC = b"NPR1"
_HEADER_BYTES = len(_MAGIC) + 4

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


class SharedCache:
    """Replies by key in a Redis server.

    After a failure the server is left alone for a while, longer with each further failure, so that
    a dead server costs one timeout and not one a request. Failures are counted; the first of an
    outage is logged, and its end.
    """

    def __init__(self, url: str) -> None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=TIMEOUT_SECONDS,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        self._pause = 0.0
        self._resume_at = 0.0

    async def get(self, key: str) -> bytes | None:
        """The reply kept for `key`; None where there is none that can be used."""
        found = await self._try(lambda: self._redis.get(key))
        return self._reply(found)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The replies kept for several keys, in their order, in one round trip."""
        found = await self._try(lambda: self._redis.mget(keys)) if keys else None
        return [self._reply(value) for value in found] if found else [None] * len(keys)

    async def put(self, key: str, reply: bytes, ttl_seconds: float) -> None:
        """Keep a reply for about that long; a little less, so that not all end at once."""
        milliseconds = max(1, int(ttl_seconds * 1000 * random.uniform(0.9, 1.0)))
        value = _MAGIC + zlib.crc32(reply).to_bytes(4, "little") + reply
        await self._try(lambda: self._redis.set(key, value, px=milliseconds))

    async def delete(self, key: str) -> None:
        """Forget a reply."""
        await self._try(lambda: self._redis.delete(key))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _try(self, command: Callable[[], Awaitable[_Result]]) -> _Result | None:
        if time.monotonic() < self._resume_at:
            CACHE_REQUESTS.labels("redis", "skipped").inc()
            return None
        try:
            result = await command()
        except (RedisError, OSError) as error:
            self._failed(error)
            return None
        if self._pause:
            self._pause = 0.0
            _log.info("shared_cache_recovered")
        return result

    def _failed(self, error: Exception) -> None:
        CACHE_REQUESTS.labels("redis", "error").inc()
        if not self._pause:
            _log.warning("shared_cache_failed", error=str(error), instead="reading files")
        self._pause = min(max(0.5, self._pause * 2), LONGEST_PAUSE_SECONDS)
        self._resume_at = time.monotonic() + self._pause

    def _reply(self, value: bytes | str | None) -> bytes | None:
        if not isinstance(value, bytes):
            CACHE_REQUESTS.labels("redis", "miss").inc()
            return None
        reply = value[_HEADER_BYTES:]
        if value[: len(_MAGIC)] != _MAGIC or value[len(_MAGIC) : _HEADER_BYTES] != zlib.crc32(
            reply
        ).to_bytes(4, "little"):
            CACHE_REQUESTS.labels("redis", "corrupt").inc()
            return None
        CACHE_REQUESTS.labels("redis", "hit").inc()
        return reply
