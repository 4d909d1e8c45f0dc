"""The gateway's record routes against a bare HTTP server that answers the same bytes."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from tests.load.closed_loop import HEADER, Measured, closed_loop
from tests.load.datasets import write_datasets
from tests.load.processes import server

BASELINE = {"/neuron_record": (8.7, 68), "/attention_head_record": (1.1, 922)}
"""Requests a second and p50 in ms of the reference's server on this kind of machine, one client."""


async def measure(*, scale: float = 1.0) -> list[str]:
    """Measure both record routes, alone and at 16 clients; lines of a report in Markdown.

    `scale` shrinks the number of records and requests, for a test that this runs at all.
    """
    neurons, heads = max(8, int(100 * scale)), max(4, int(20 * scale))
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        deployment = write_datasets(Path(folder), neurons=neurons, heads=heads)
        common = ("--config", str(deployment), "--port", "0", "--metrics-port", "0")
        with server("services.records", *common) as (records, _):
            found = {"NEUROPIL_SERVICES__RECORDS": records}
            with server("services.gateway", *common, environment=found) as (gateway, pid):
                for route, scalar_type, count in (
                    ("/neuron_record", "mlp_post_act", neurons),
                    ("/attention_head_record", "attn_write_norm", heads),
                ):
                    lines += await _route(gateway, pid, route, scalar_type, count)
                lines += await _beside(gateway, heads)
    return lines


async def _route(gateway: str, pid: int, route: str, scalar_type: str, count: int) -> list[str]:
    bodies = [
        {"dst": scalar_type, "layerIndex": 0, "activationIndex": index, "datasets": ["bench"]}
        for index in range(count)
    ]
    async with httpx.AsyncClient(base_url=f"http://{gateway}", timeout=60) as client:
        size = len((await client.post(route, json=bodies[0])).raise_for_status().content)
    cold = await _run(gateway, pid, route, bodies, calls=count, workers=1)
    alone = await _run(gateway, pid, route, bodies, calls=3 * count, workers=1)
    crowded = await _run(gateway, pid, route, bodies, calls=3 * count, workers=16)
    with server("tests.load.plain_http", str(size)) as (plain, plain_pid):
        floor = await _run(plain, plain_pid, route, bodies, calls=3 * count, workers=1)
    rate, p50 = BASELINE[route]
    return [
        f"\n### {route}, answer of {size:,} bytes\n",
        HEADER,
        floor.row("bare HTTP server, the same bytes, 1 client", floor),
        alone.row("1 client, records in memory", floor),
        crowded.row("16 clients, records in memory", floor),
        cold.row("1 client, records cold", floor),
        f"\nAgainst the reference's {rate} requests/s and p50 of {p50} ms, measured earlier on this"
        f" kind of machine: {alone.rate / rate:.0f} times its rate with 1 client,"
        f" {crowded.rate / rate:.0f} times with 16.",
    ]


async def _run(
    address: str, pid: int, route: str, bodies: list[dict[str, object]], *, calls: int, workers: int
) -> Measured:
    limits = httpx.Limits(max_connections=workers)
    async with httpx.AsyncClient(
        base_url=f"http://{address}", timeout=120, limits=limits
    ) as client:

        async def call(number: int) -> object:
            answer = await client.post(route, json=bodies[number % len(bodies)])
            return answer.raise_for_status()

        return await closed_loop(call, pid, calls=calls, workers=workers)


async def _beside(gateway: str, heads: int) -> list[str]:
    """How long a trivial route takes while attention records are asked for without pause."""
    async with httpx.AsyncClient(base_url=f"http://{gateway}", timeout=120) as client:
        over = asyncio.Event()

        async def load() -> None:
            number = 0
            while not over.is_set():
                body = {
                    "dst": "attn_write_norm",
                    "layerIndex": 0,
                    "activationIndex": number % heads,
                    "datasets": ["bench"],
                }
                (await client.post("/attention_head_record", json=body)).raise_for_status()
                number += 1

        async def trivial(times: int) -> list[float]:
            taken = []
            for _ in range(times):
                started = time.perf_counter()
                (await client.get("/")).raise_for_status()
                taken.append((time.perf_counter() - started) * 1e3)
            return taken

        quiet = await trivial(50)
        loading = asyncio.create_task(load())
        busy = await trivial(50)
        over.set()
        await loading
    return [
        "\n### A trivial route beside attention records\n",
        "| what | p50 ms | p99 ms |\n|---|---|---|",
        f"| alone | {np.percentile(quiet, 50):.2f} | {np.percentile(quiet, 99):.2f} |",
        f"| beside one client that asks for attention records | {np.percentile(busy, 50):.2f}"
        f" | {np.percentile(busy, 99):.2f} |",
        "\nThe reference's server: 0.5 ms alone, 735 ms beside them.",
    ]
