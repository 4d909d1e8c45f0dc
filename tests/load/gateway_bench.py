"""The gateway's record routes against a bare HTTP server that answers the same bytes."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.formats.encoding import encode, write_atomically
from shared.formats.records import NeuronId
from shared.formats.simulations import (
    ActivationScale,
    NeuronSimulationResults,
    ScoredExplanation,
    ScoredSequenceSimulation,
    ScoredSimulation,
    SequenceSimulation,
)
from tests.load.closed_loop import HEADER, Measured, closed_loop
from tests.load.datasets import write_datasets
from tests.load.lean_client import GET_ROOT, Connection, post
from tests.load.processes import server

BASELINE = {
    "/neuron_record": (8.7, 68),
    "/attention_head_record": (1.1, 922),
    "/existing_explanations": (71, 14),
}
"""Requests a second and p50 in ms of the reference's server on this kind of machine, one client."""

_KEPT_TARGET, _ANEW_TARGET, _TAIL_LIMIT = 100, 60, 10
_ANEW = {"NEUROPIL_HTTP__ANSWER_CACHE_MEGABYTES": "0"}


@dataclass(frozen=True)
class _Requests:
    """The requests of one route, and how often each is sent."""

    route: str
    bodies: list[bytes]
    rounds: int


async def measure(*, scale: float = 1.0) -> list[str]:
    """Measure the routes with answers kept and encoded anew; lines of a report in Markdown.

    `scale` shrinks the number of records and requests, for a test that this runs at all.
    """
    neurons, heads = max(8, int(100 * scale)), max(4, int(20 * scale))
    rounds = max(1, int(10 * scale))
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        deployment = write_datasets(Path(folder), neurons=neurons, heads=heads)
        explained = write_explanations(Path(folder) / "explained")
        common = ("--config", str(deployment), "--port", "0", "--metrics-port", "0")
        allowed = {"NEUROPIL_ALLOWED_PATH_PREFIXES": json.dumps([str(explained)])}
        with (
            server("services.records", *common, environment=allowed) as (records, _),
            _gateway(common, records) as (kept, kept_pid),
            _gateway(common, records, _ANEW) as (anew, anew_pid),
        ):
            for route, scalar_type, count in (
                ("/neuron_record", "mlp_post_act", neurons),
                ("/attention_head_record", "attn_write_norm", heads),
            ):
                requests = _Requests(route, _bodies(scalar_type, count), rounds)
                lines += await _records(requests, (kept, kept_pid), (anew, anew_pid))
            body = {
                "dst": "mlp_post_act",
                "layerIndex": 0,
                "activationIndex": 0,
                "explanationDatasets": [str(explained)],
            }
            lines += await _explanations(json.dumps(body).encode(), kept, kept_pid, rounds)
            lines += await _beside(anew, _bodies("attn_write_norm", heads))
    return lines


def _gateway(
    common: tuple[str, ...], records: str, environment: Mapping[str, str] | None = None
) -> AbstractContextManager[tuple[str, int]]:
    found = {"NEUROPIL_SERVICES__RECORDS": records, **(environment or {})}
    return server("services.gateway", *common, environment=found)


def _bodies(scalar_type: str, count: int) -> list[bytes]:
    return [
        json.dumps(
            {"dst": scalar_type, "layerIndex": 0, "activationIndex": index, "datasets": ["bench"]}
        ).encode()
        for index in range(count)
    ]


async def _records(requests: _Requests, kept: tuple[str, int], anew: tuple[str, int]) -> list[str]:
    once = _Requests(requests.route, requests.bodies, 1)
    size = await _size(kept[0], requests)
    cold = await _run(*anew, once, workers=1)
    new = [(workers, await _run(*anew, requests, workers=workers)) for workers in (1, 16, 64)]
    await _run(*kept, once, workers=1)
    old = [(workers, await _run(*kept, requests, workers=workers)) for workers in (1, 16, 64)]
    with server("tests.load.plain_http", str(size)) as (plain, plain_pid):
        floor = await _run(plain, plain_pid, requests, workers=1)
    lines = [
        f"\n### {requests.route}, answer of {size:,} bytes\n",
        HEADER,
        floor.row("bare HTTP server, the same bytes, 1 client", floor),
        *(each.row(f"{_clients(count)}, answers kept", floor) for count, each in old),
        *(
            each.row(f"{_clients(count)}, encoded anew, records in memory", floor)
            for count, each in new
        ),
        cold.row("1 client, encoded anew, records cold in the record service", floor),
        "\n| what | measured | target | |\n|---|---|---|---|",
    ]
    rate, _ = BASELINE[requests.route]
    for what, measured, target in (
        ("answers kept", old, _KEPT_TARGET),
        ("encoded anew", new, _ANEW_TARGET),
    ):
        best = max(each.rate for _, each in measured)
        crowd = measured[-1][1]
        lines += [
            _at_least(f"{what}, times the reference's {rate} requests/s", best / rate, target),
            _at_least(f"{what}, the same with 1 client", measured[0][1].rate / rate, target),
            _under(f"{what}, p99 at 64 clients in p50", crowd.p99_ms / crowd.p50_ms, _TAIL_LIMIT),
        ]
    return lines


def _at_least(what: str, value: float, least: float) -> str:
    return f"| {what} | {value:.1f} | >= {least:g} | {'pass' if value >= least else 'miss'} |"


def _under(what: str, value: float, limit: float) -> str:
    return f"| {what} | {value:.1f} | < {limit:g} | {'pass' if value < limit else 'miss'} |"


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


async def _explanations(body: bytes, address: str, pid: int, rounds: int) -> list[str]:
    requests = _Requests("/existing_explanations", [body] * 50, rounds)
    await _run(address, pid, _Requests(requests.route, [body], 1), workers=1)
    rows = [(count, await _run(address, pid, requests, workers=count)) for count in (1, 16)]
    rate, _ = BASELINE[requests.route]
    return [
        f"\n### {requests.route}, a file of one explanation with all its simulations, never kept"
        " by the gateway\n",
        HEADER,
        *(each.row(_clients(count)) for count, each in rows),
        f"\nThe reference's server: {rate} requests/s with 1 client, 93 with 16, for a file of this"
        " size.",
    ]


def write_explanations(folder: Path, *, sequences: int = 60, tokens: int = 64) -> Path:
    """Write an explanation of component 0:0 with its simulations, about 350 KB."""
    random = np.random.default_rng(1)
    simulations = [
        ScoredSequenceSimulation(
            sequence_simulation=SequenceSimulation(
                tokens=[f" word{number}" for number in random.integers(0, 500, tokens)],
                expected_activations=random.random(tokens).tolist(),
                activation_scale=ActivationScale.NEURON_ACTIVATIONS,
                distribution_values=random.random((tokens, 1)).tolist(),
                distribution_probabilities=random.random((tokens, 1)).tolist(),
            ),
            true_activations=random.random(tokens).tolist(),
            ev_correlation_score=0.5,
        )
        for _ in range(sequences)
    ]
    results = NeuronSimulationResults(
        neuron_id=NeuronId(neuron_index=0, layer_index=0),
        scored_explanations=[
            ScoredExplanation("words", ScoredSimulation(simulations, ev_correlation_score=0.5))
        ],
    )
    path = folder / "0" / "0.jsonl"
    path.parent.mkdir(parents=True)
    write_atomically(path, encode(results))
    return folder


async def _size(address: str, requests: _Requests) -> int:
    connection = await Connection.open(address)
    try:
        return await connection.send(post(requests.route, requests.bodies[0]))
    finally:
        connection.close()


async def _run(address: str, pid: int, requests: _Requests, *, workers: int) -> Measured:
    sent = [post(requests.route, body) for body in requests.bodies]
    connections = [await Connection.open(address) for _ in range(workers)]
    free = list(connections)

    async def call(number: int) -> object:
        connection = free.pop()
        size = await connection.send(sent[number % len(sent)])
        free.append(connection)
        return size

    try:
        return await closed_loop(call, pid, calls=requests.rounds * len(sent), workers=workers)
    finally:
        for connection in connections:
            connection.close()


async def _beside(gateway: str, bodies: list[bytes]) -> list[str]:
    """How long a trivial route takes while attention records are asked for without pause."""
    over = asyncio.Event()

    async def load() -> None:
        connection, number = await Connection.open(gateway), 0
        while not over.is_set():
            await connection.send(post("/attention_head_record", bodies[number % len(bodies)]))
            number += 1
        connection.close()

    connection = await Connection.open(gateway)

    async def trivial(times: int) -> list[float]:
        taken = []
        for _ in range(times):
            started = time.perf_counter()
            await connection.send(GET_ROOT)
            taken.append((time.perf_counter() - started) * 1e3)
        return taken

    quiet = await trivial(200)
    loading = asyncio.create_task(load())
    busy = await trivial(200)
    over.set()
    await loading
    connection.close()
    return [
        "\n### A trivial route beside attention records, encoded anew\n",
        "| what | p50 ms | p99 ms |\n|---|---|---|",
        f"| alone | {np.percentile(quiet, 50):.2f} | {np.percentile(quiet, 99):.2f} |",
        f"| beside one client that asks for attention records | {np.percentile(busy, 50):.2f}"
        f" | {np.percentile(busy, 99):.2f} |",
        "\nThe reference's server: 0.5 ms alone, 735 ms beside them.",
    ]
