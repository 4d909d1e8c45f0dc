"""What fails, for how long, and what may be noticed of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from tests.emulators.azurite import Azurite
from tests.faults.processes import Proxy, Redis, Replica, nonsense_server

LOCAL, BLOB = "local", "blob"
_PASSWORD = "secret"


@dataclass
class World:
    """The parts that run together in a scenario."""

    redis: Redis
    replicas: list[Replica]
    proxy: Proxy | None = None
    """Between the service and the blob store; None, as the store, where there is none."""
    store: Azurite | None = None
    redis_proxy: Proxy | None = None
    """Between the service and Redis, where a scenario needs it."""
    problems: list[str] = field(default_factory=list)
    """What a scenario found wrong itself."""


Fault = Callable[[World], AbstractAsyncContextManager[None]]
"""Something fails when it is entered and is well again when it is left."""


@dataclass(frozen=True)
class Scenario:
    """A fault and what it may cost."""

    name: str
    title: str
    fault: Fault
    may_fail: frozenset[str] = frozenset()
    """Datasets whose data can't be had meanwhile; no other call may fail."""
    sources: tuple[str, ...] = (LOCAL, BLOB)
    num_replicas: int = 1
    ttl_seconds: int = 3600
    """How long Redis keeps replies; short, so that reads reach the store all the time."""
    redis_recovers: bool = False
    """Whether it is Redis that fails: its hits must come back."""
    redis_behind_proxy: bool = False
    store_forgets: bool = False
    """Whether the store may lose what it took a moment ago: nothing is written to it then."""
    replica_dies: bool = False
    """Whether a replica is killed: batches that it had begun to send can't be repeated."""


@contextlib.asynccontextmanager
async def _redis_killed(world: World) -> AsyncIterator[None]:
    world.redis.kill()
    try:
        yield
    finally:
        await asyncio.to_thread(world.redis.start)


@contextlib.asynccontextmanager
async def _redis_stopped(world: World) -> AsyncIterator[None]:
    pid = world.redis.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def _redis_full(world: World) -> AsyncIterator[None]:
    def limit(maximum: int) -> None:
        with world.redis.client() as client:
            client.config_set("maxmemory", maximum)

    with world.redis.client() as client:
        client.flushall()
    limit(1)
    try:
        yield
    finally:
        limit(0)


@contextlib.asynccontextmanager
async def _redis_refuses(world: World) -> AsyncIterator[None]:
    # It wants a password that nobody has, and ends the connections that there are.
    with world.redis.client() as client:
        client.config_set("requirepass", _PASSWORD)
        client.client_kill_filter(_type="normal", skipme=True)
    try:
        yield
    finally:
        with world.redis.client(_PASSWORD) as client:
            client.config_set("requirepass", "")


@contextlib.asynccontextmanager
async def _redis_slow(world: World) -> AsyncIterator[None]:
    assert world.redis_proxy is not None
    world.redis_proxy.delay_seconds = 0.3
    try:
        yield
    finally:
        world.redis_proxy.heal()


@contextlib.asynccontextmanager
async def _redis_nonsense(world: World) -> AsyncIterator[None]:
    world.redis.kill()
    try:
        async with nonsense_server(world.redis.port):
            yield
    finally:
        await asyncio.to_thread(world.redis.start)


@contextlib.asynccontextmanager
async def _store_killed(world: World) -> AsyncIterator[None]:
    assert world.store is not None
    await asyncio.to_thread(world.store.kill)
    try:
        yield
    finally:
        await asyncio.to_thread(world.store.start)


@contextlib.asynccontextmanager
async def _store_stopped(world: World) -> AsyncIterator[None]:
    assert world.store is not None
    world.store.suspend()
    try:
        yield
    finally:
        world.store.resume()


@contextlib.asynccontextmanager
async def _store_slow(world: World) -> AsyncIterator[None]:
    assert world.proxy is not None
    world.proxy.delay_seconds, world.proxy.piece_bytes = 0.2, 16384
    try:
        yield
    finally:
        world.proxy.heal()


@contextlib.asynccontextmanager
async def _store_cuts(world: World) -> AsyncIterator[None]:
    assert world.proxy is not None
    world.proxy.cut_probability, world.proxy.piece_bytes = 0.2, 4096
    try:
        yield
    finally:
        world.proxy.heal()


@contextlib.asynccontextmanager
async def _replica_told_to_end(world: World) -> AsyncIterator[None]:
    first = world.replicas[0]
    first.signal(signal.SIGTERM)
    try:
        yield
        status = await asyncio.to_thread(first.ended)
        if status != 0:
            world.problems.append(f"the replica ended with status {status}")
    finally:
        await asyncio.to_thread(first.start)


@contextlib.asynccontextmanager
async def _replica_killed(world: World) -> AsyncIterator[None]:
    first = world.replicas[0]
    first.signal(signal.SIGKILL)
    try:
        yield
        await asyncio.to_thread(first.ended)
    finally:
        await asyncio.to_thread(first.start)


_BLOB = frozenset({BLOB})

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "redis_killed", "Redis killed, restarted empty", _redis_killed, redis_recovers=True
        ),
        Scenario(
            "redis_stopped",
            "Redis stopped (SIGSTOP): it hangs",
            _redis_stopped,
            redis_recovers=True,
        ),
        Scenario("redis_full", "Redis full (noeviction)", _redis_full, redis_recovers=True),
        Scenario("redis_nonsense", "Redis answers nonsense", _redis_nonsense, redis_recovers=True),
        Scenario(
            "redis_refuses",
            "Redis refuses (NOAUTH), connections ended",
            _redis_refuses,
            redis_recovers=True,
        ),
        Scenario(
            "redis_slow",
            "Redis slow: 0.3 s for each answer",
            _redis_slow,
            redis_recovers=True,
            redis_behind_proxy=True,
        ),
        Scenario(
            "store_killed",
            "Azurite killed, restarted",
            _store_killed,
            _BLOB,
            ttl_seconds=2,
            store_forgets=True,
        ),
        Scenario(
            "store_stopped",
            "Azurite stopped (SIGSTOP): it hangs",
            _store_stopped,
            _BLOB,
            ttl_seconds=2,
        ),
        Scenario(
            "store_slow", "Azurite slow: 0.2 s for each 16 KiB", _store_slow, _BLOB, ttl_seconds=2
        ),
        Scenario("store_cuts", "Azurite cuts its answers short", _store_cuts, _BLOB, ttl_seconds=2),
        Scenario(
            "replica_ends",
            "SIGTERM, a second replica takes over",
            _replica_told_to_end,
            ttl_seconds=2,
            num_replicas=2,
        ),
        Scenario(
            "replica_killed",
            "SIGKILL, a second replica takes over",
            _replica_killed,
            ttl_seconds=2,
            num_replicas=2,
            replica_dies=True,
        ),
    )
}
