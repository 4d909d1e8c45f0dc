"""The gateway as a process: how it starts, drains and ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuropil.records import v1
from tests.integration.gateway_running import Servicer, service

REPOSITORY = Path(__file__).resolve().parents[2]
BODY = {"dst": "mlp_post_act", "layerIndex": 0, "activationIndex": 0, "datasets": ["d"]}


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text("{}")
    return path


@contextmanager
def process(
    configuration: Path, *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`python -m services.gateway`, killed at the end if it still runs."""
    started = subprocess.Popen(
        [sys.executable, "-m", "services.gateway", "--config", str(configuration), *arguments],
        cwd=REPOSITORY,
        env=os.environ | (environment or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate(timeout=30)


def address_of(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    found = re.fullmatch(r"serving gateway (127\.0\.0\.1:\d+)\n", running.stdout.readline())
    assert found is not None
    return found[1]


PORTS = ("--port", "0", "--metrics-port", "0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_ends_on_a_signal(
    configuration: Path, number: signal.Signals
) -> None:
    with process(configuration, *PORTS) as running:
        address = address_of(running)
        answer = httpx.get(f"http://{address}/", trust_env=False)
        assert answer.json() == {"Hello": "World"}
        running.send_signal(number)
        assert running.wait(20) == 0


def test_it_ends_when_its_parent_goes(configuration: Path) -> None:
    with process(configuration, *PORTS, "--end-with-parent") as running:
        address_of(running)
        assert running.stdin is not None
        running.stdin.close()
        assert running.wait(20) == 0
        # Closed above; there is nothing left to flush to it.
        running.stdin = None


@pytest.fixture
async def slow_records() -> AsyncIterator[tuple[str, Any]]:
    class Slow(Servicer):
        def __init__(self) -> None:
            super().__init__()
            self.entered = asyncio.Event()
            self.release = asyncio.Event()

        async def GetTokenRecord(self, request: Any, context: Any) -> Any:
            self.entered.set()
            await self.release.wait()
            return v1.GetTokenRecordResponse(dataset="d")

    slow = Slow()
    async with service("records", slow) as running:
        yield f"127.0.0.1:{running.port}", slow
        slow.release.set()


async def test_a_running_request_ends_before_the_gateway_does(
    configuration: Path, slow_records: tuple[str, Any]
) -> None:
    address, slow = slow_records
    environment = {"NEUROPIL_SERVICES__RECORDS": address}
    with process(configuration, *PORTS, environment=environment) as running:
        url = f"http://{address_of(running)}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            call = asyncio.create_task(client.post("/neuron_record", json=BODY))
            await asyncio.wait_for(slow.entered.wait(), 10)
            running.terminate()
            # New connections are refused while the request still runs.
            await asyncio.to_thread(_wait_until_refused, url)
            assert running.poll() is None
            assert not call.done()
            slow.release.set()
            answer = await call
            assert answer.json()["dataset"] == "d"
        assert await asyncio.to_thread(running.wait, 20) == 0


def _wait_until_refused(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)


def failure_of(running: subprocess.Popen[str]) -> str:
    output, errors = running.communicate(timeout=30)
    assert running.returncode == 2
    assert output == ""
    told = [line for line in errors.splitlines() if not line.startswith("{")]
    assert len(told) == 1
    return told[0]


def test_a_port_in_use_is_one_line(configuration: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with process(configuration, "--port", port, "--metrics-port", "0") as running:
            assert port in failure_of(running)
        with process(configuration, "--port", "0", "--metrics-port", port) as running:
            assert "metrics.port" in failure_of(running)


@pytest.mark.parametrize(
    ("text", "named"), [("htp: {}", "htp"), ("http: {max_body_megabytes: x}", "http.max_body")]
)
def test_a_configuration_that_is_wrong_is_one_line(
    configuration: Path, text: str, named: str
) -> None:
    configuration.write_text(text)
    with process(configuration, *PORTS) as running:
        assert named in failure_of(running)


def test_a_host_that_is_none_is_one_line(configuration: Path) -> None:
    with process(configuration, *PORTS, "--host", "no.such.host.invalid") as running:
        assert "no.such.host.invalid" in failure_of(running)


def test_requests_are_logged_and_counted(configuration: Path) -> None:
    with process(configuration, *PORTS) as running:
        url = f"http://{address_of(running)}"
        with httpx.Client(base_url=url, trust_env=False) as client:
            client.get("/", headers={"x-request-id": "my-id"})
            client.get("/?secret=1")
            client.post("/no/such/route")
        assert running.stderr is not None
        lines: list[dict[str, Any]] = []
        while not any(line.get("route") == "unknown" for line in lines):
            lines.append(json.loads(running.stderr.readline()))
        (metrics,) = (line["address"] for line in lines if line["event"] == "metrics")
        requests = [line for line in lines if line["event"] == "request"]
        first = requests[0]
        assert first["request_id"] == "my-id"
        assert (first["route"], first["method"], first["status"]) == ("/", "GET", 200)
        assert (first["service"], first["level"]) == ("gateway", "info")
        assert requests[2]["status"] == 404
        text = httpx.get(f"http://{metrics}/metrics", trust_env=False).text
        count = 'neuropil_http_seconds_count{method="GET",route="/",status="200"} 2.0'
        assert count in text
        assert "/no/such/route" not in text


def test_it_needs_no_torch(configuration: Path) -> None:
    check = (
        "import sys; sys.modules['torch'] = None\n"
        "import services.gateway.__main__\n"
        "assert not {'sklearn', 'scipy', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, check=True, timeout=60)
