"""Reads over HTTP while the record service, its files or the readers fail, in real processes."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.settings import Deployment, Http, Services
from tests.integration.gateway_running import gateway
from tests.integration.resident_memory import resident_bytes

REPOSITORY = Path(__file__).resolve().parents[2]
BODY = {"dst": "mlp_post_act", "layerIndex": 0, "activationIndex": 0, "datasets": ["d"]}
HEAD = BODY | {"dst": "attn_write_norm"}
READERS, ASKED = 64, 12


@contextmanager
def process(module: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m module`, and the address that it announced; killed at the end if it still runs."""
    started = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert started.stdout is not None
        found = re.fullmatch(r"serving \w+ (127\.0\.0\.1:\d+)\n", started.stdout.readline())
        assert found is not None
        yield started, found[1]
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate(timeout=30)


def write_record(folder: Path, top: float, tokens: int = 1, values: int = 1) -> None:
    activations = [0.123456] * (values - 1) + [top]
    record = NeuronRecord(
        NeuronId(0, 0),
        most_positive_activation_records=[ActivationRecord(activations, ["a"] * tokens)],
    )
    path = folder / "0" / "0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encode(record))


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """Deployment of one record by token, and one by token pair that is 1 MB as an answer."""
    write_record(tmp_path / "neurons", 2.0)
    write_record(tmp_path / "heads", 2.0, tokens=300, values=300 * 301 // 2)
    datasets = [
        {
            "short_name": "d",
            "derived_scalar_type": kind,
            "user_visible_name": "D",
            "neuron_dataset_path": str(tmp_path / folder),
        }
        for kind, folder in (("mlp_post_act", "neurons"), ("attn_write_norm", "heads"))
    ]
    path = tmp_path / "deployment.yaml"
    path.write_text(yaml.safe_dump({"datasets": datasets, "cache": {"ttl_seconds": 1}}))
    return path


async def until(
    client: httpx.AsyncClient, fits: Callable[[httpx.Response], bool], seconds: float
) -> list[httpx.Response]:
    """Ask for the record until an answer fits; all answers on the way, the fitting one last."""
    answers: list[httpx.Response] = []
    ending = time.monotonic() + seconds
    while not answers or not fits(answers[-1]):
        assert time.monotonic() < ending, answers[-1].text
        headers = {"x-timeout-seconds": "1"}
        answers.append(await client.post("/neuron_record", json=BODY, headers=headers))
        await asyncio.sleep(0.05)
    return answers


def deployment(records: str, **http: Any) -> Deployment:
    return Deployment(services=Services(records=records), http=Http(**http))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_record_service_that_comes_back_is_used_again(
    configuration: Path, number: signal.Signals
) -> None:
    arguments = ("services.records", "--config", str(configuration), "--metrics-port", "0")
    with ExitStack() as stack:
        first, address = stack.enter_context(process(*arguments, "--port", "0"))
        async with gateway(deployment(address, answer_cache_megabytes=0)) as client:
            await until(client, lambda answer: answer.status_code == 200, 20)
            first.send_signal(number)
            await asyncio.to_thread(first.wait, 20)
            for _ in range(3):
                (away,) = await until(client, lambda _: True, 20)
                assert away.status_code in {503, 504}
                assert away.json()["code"] in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
                assert address not in away.text
            port = address.rpartition(":")[2]
            _, again = stack.enter_context(process(*arguments, "--port", port))
            assert again == address
            *failed, back = await until(client, lambda answer: answer.status_code == 200, 5)
            assert {answer.status_code for answer in failed} <= {503, 504}
            assert back.json()["maxActivation"] == 2.0


async def test_a_record_that_changes_is_seen_when_what_was_kept_is_old(configuration: Path) -> None:
    folder = configuration.parent / "neurons"
    arguments = ("--config", str(configuration), "--port", "0", "--metrics-port", "0")
    with process("services.records", *arguments) as (_, address):
        async with gateway(deployment(address, answer_cache_seconds=0.2)) as client:
            await until(client, lambda answer: answer.json().get("maxActivation") == 2.0, 20)
            write_record(folder, 3.0)
            *old, _ = await until(client, lambda answer: answer.json()["maxActivation"] == 3.0, 20)
            assert {answer.json()["maxActivation"] for answer in old} <= {2.0}
            (folder / "0" / "0.json").write_bytes(b"{")
            *old, _ = await until(client, lambda answer: answer.status_code == 502, 20)
            assert {answer.json()["maxActivation"] for answer in old} <= {3.0}
            # A failure isn't kept: the file is read again as soon as it is whole.
            write_record(folder, 4.0)
            *_, mended = await until(client, lambda answer: answer.status_code != 502, 20)
            assert mended.json()["maxActivation"] == 4.0
            (folder / "0" / "0.json").unlink()
            await until(client, lambda answer: answer.status_code == 404, 20)


@pytest.mark.parametrize("kept", [0, 64])
async def test_readers_that_do_not_read_hold_little_memory(configuration: Path, kept: int) -> None:
    arguments = ("--port", "0", "--metrics-port", "0", "--config")
    with ExitStack() as stack:
        _, records = stack.enter_context(
            process("services.records", *arguments, str(configuration))
        )
        other = configuration.with_name("gateway.yaml")
        settings = {"services": {"records": records}, "http": {"answer_cache_megabytes": kept}}
        other.write_text(yaml.safe_dump(settings))
        running, address = stack.enter_context(process("services.gateway", *arguments, str(other)))
        async with httpx.AsyncClient(
            base_url=f"http://{address}", trust_env=False, timeout=60
        ) as client:
            for _ in range(3):
                whole = await client.post("/attention_head_record", json=HEAD)
                assert whole.status_code == 200, whole.text
            before = resident_bytes(running.pid)
            request = pipelined(whole.request, ASKED)
            slow = [stack.enter_context(reader(address)) for _ in range(READERS)]
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.sock_sendall(each, request) for each in slow))
            peak = await settled(lambda: resident_bytes(running.pid), client)
            # What a connection holds: the answer that is being sent, and the next that waits.
            bound = READERS * 2 * len(whole.content) + (64 << 20)
            assert bound < READERS * ASKED * len(whole.content) / 2
            assert peak - before < bound
            # Others are served beside them, and those who begin to read get what they asked for.
            assert (await client.post("/attention_head_record", json=HEAD)).content == whole.content
            got = await asyncio.wait_for(received(slow[0], ASKED * len(whole.content)), 60)
            assert got.count(whole.content) == ASKED


@contextmanager
def reader(address: str) -> Iterator[socket.socket]:
    """A connection with little room for what it doesn't read."""
    host, _, port = address.rpartition(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        connection.connect((host, int(port)))
        connection.setblocking(False)
        yield connection


def pipelined(request: httpx.Request, times: int) -> bytes:
    body = request.content
    head = (
        f"POST {request.url.path} HTTP/1.1\r\nhost: gateway\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head.encode() + body) * times


async def settled(measure: Callable[[], int], client: httpx.AsyncClient) -> int:
    """The largest measure until it hardly grows for two seconds; the gateway answers all along."""
    peak, since = measure(), time.monotonic()
    ending = since + 60
    while time.monotonic() < min(since + 2, ending):
        assert (await client.get("/")).status_code == 200
        await asyncio.sleep(0.02)
        now = measure()
        if now > peak + (1 << 20):
            since = time.monotonic()
        peak = max(peak, now)
    return peak


async def received(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    receive: Callable[[socket.socket, int], Awaitable[bytes]] = loop.sock_recv
    parts: list[bytes] = []
    while sum(map(len, parts)) < size or not parts[-1].endswith(b"}"):
        part = await receive(connection, 1 << 20)
        assert part
        parts.append(part)
    return b"".join(parts)
