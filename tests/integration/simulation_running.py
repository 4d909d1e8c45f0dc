"""The simulation service over real sockets, beside a real record service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from grpc_health.v1 import health_pb2_grpc

from neuropil.channel import open_aio_channel
from neuropil.common import v1 as common
from neuropil.errors import atranslated
from neuropil.names import component_id
from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from services.records.app import record_services
from services.simulation.app import simulation_services
from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Dataset, Deployment, Services

ANIMALS = ("lion", "horse", "sheep", "dog", "eagle", "wolf", "goat", "camel")
PLAIN = ("the stone of", "a book and", "under the roof", "in winter", "for silver")


def sequence(number: int, *, active: bool) -> ActivationRecord:
    words = f"and {PLAIN[number % 5]} a {ANIMALS[number % 8] if active else 'table'} {number} stood"
    tokens = [f" {word}" for word in words.split()]
    return ActivationRecord([2.5 if token.strip() in ANIMALS else 0.1 for token in tokens], tokens)


def animal_record(index: int, top: int, random: int) -> NeuronRecord:
    return NeuronRecord(
        NeuronId(index, 0),
        most_positive_activation_records=[sequence(i, active=True) for i in range(top)],
        random_sample=[sequence(100 + i, active=False) for i in range(random)],
    )


@dataclass
class World:
    simulation: v1.SimulationStub
    health: health_pb2_grpc.HealthStub
    dataset: Dataset
    deployment: Deployment


@asynccontextmanager
async def serving(root: Path) -> AsyncIterator[World]:
    """Both services over records that are written to `root`."""
    for index, record in enumerate(
        [animal_record(0, 16, 9), animal_record(1, 2, 0), animal_record(2, 3, 3)]
    ):
        write_atomically(root / f"mlp/0/{index}.json", encode(record))
    write_atomically(root / "mlp/0/3.json", b"{")
    heads = NeuronRecord(
        NeuronId(0, 0),
        most_positive_activation_records=[ActivationRecord([1.0, 0.5, 2.0], ["a", "b"])] * 8,
    )
    write_atomically(root / "heads/0/0.json", encode(heads))
    datasets = tuple(
        Dataset(
            short_name="demo",
            derived_scalar_type=kind,
            user_visible_name=kind,
            neuron_dataset_path=str(root / folder),
        )
        for kind, folder in (("mlp_post_act", "mlp"), ("attn_write_norm", "heads"))
    )
    async with record_services(Deployment(datasets=datasets)) as records:
        record_server = await start_server(records, ServerOptions("records"))
        deployment = Deployment(
            datasets=datasets, services=Services(records=f"127.0.0.1:{record_server.port}")
        )
        async with simulation_services(deployment) as simulation:
            server = await start_server(simulation, ServerOptions("simulation"))
            channel = open_aio_channel(f"127.0.0.1:{server.port}")
            yield World(
                v1.SimulationStub(channel),
                health_pb2_grpc.HealthStub(channel),
                datasets[0],
                deployment,
            )
            await channel.close()
            await server.drain(1)
        await record_server.drain(1)


def columns(*sequences: list[str]) -> common.TokenSequences:
    return common.TokenSequences(
        tokens=[token for tokens in sequences for token in tokens],
        sequence_lengths=[len(tokens) for tokens in sequences],
    )


def labeled(*records: ActivationRecord) -> common.TokenSequences:
    message = columns(*(record.tokens for record in records))
    flat = [value for record in records for value in record.activations]
    message.activations.CopyFrom(to_tensor(np.asarray(flat)))
    return message


def recorded(index: int = 0, *datasets: str) -> v1.RecordedComponent:
    return v1.RecordedComponent(
        component=component_id("mlp_post_act", 0, index), datasets=datasets or ["demo"]
    )


async def scored(
    world: World, request: v1.ScoreExplanationRequest
) -> tuple[list[v1.Progress], v1.ScoredExplanation]:
    async with atranslated():
        events = [event async for event in world.simulation.ScoreExplanation(request)]
    assert events[-1].HasField("result")
    return [event.progress for event in events[:-1]], events[-1].result
