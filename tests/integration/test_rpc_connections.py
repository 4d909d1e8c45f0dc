"""Servers as processes and connections: where they listen, what they write, whom they keep."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.rpc.server import ServerOptions, start_server


@pytest.mark.parametrize("service", ["records", "scalars", "simulation", "gateway"])
def test_a_service_that_asks_for_no_token_listens_on_loopback_only(
    service: str, tmp_path: Path
) -> None:
    config = tmp_path / "deployment.yaml"
    config.write_text("")
    # The commands of services that compute are the same; without torch they can't be imported.
    if service in {"scalars", "simulation"} and find_spec("torch") is None:
        return
    command = [sys.executable, "-m", f"services.{service}", "--config", str(config)]
    done = subprocess.run(
        [*command, "--host", "0.0.0.0", "--port", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is no IPv4 loopback address" in done.stderr
    assert len(done.stderr.splitlines()) == 1


STARTS_PROCESSES = """
import asyncio
import services.records.app
from shared.rpc.server import ServerOptions, start_server
import uvloop

async def main():
    running = await start_server([], ServerOptions("records"))
    for _ in range(3):
        await (await asyncio.create_subprocess_exec("true")).wait()
    await running.drain(0)

uvloop.run(main())
"""


def test_a_server_that_starts_processes_writes_nothing_of_it() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", STARTS_PROCESSES],
        cwd=Path(__file__).parents[2],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""


async def test_a_client_may_ask_whether_its_idle_connection_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.rpc.server.MIN_PING_SECONDS", 0.05)
    server = await start_server([], ServerOptions("records"))
    options = [("grpc.keepalive_time_ms", 500), ("grpc.http2.max_pings_without_data", 0)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as idle:
            watching = health_pb2_grpc.HealthStub(idle).Watch(health_pb2.HealthCheckRequest())
            assert await watching.read()
            # Several times as long as a server takes that allows a ping in five minutes.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(watching.read(), 6)
    finally:
        await server.drain(0)
