"""A record service on a socket, over files that the tests make."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from neuropil.channel import open_aio_channel
from neuropil.errors import NeuropilError, atranslated
from neuropil.names import component_id
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_tensor
from services.records.app import record_services
from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.formats.simulations import (
    NeuronSimulationResults,
    ScoredExplanation,
    ScoredSimulation,
)
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Cache, Dataset, Deployment, Limits

MLP = "mlp_post_act"
HEADS = "attn_write_norm"


def record(index: int, top: float = 2.0, layer: int = 0) -> NeuronRecord:
    return NeuronRecord(
        NeuronId(index, layer),
        random_sample=[ActivationRecord([0.5, -1.0], [" r", "\u2028"])],
        random_sample_by_quantile=[[ActivationRecord([0.25], ["q"])], []],
        quantile_boundaries=[0.75],
        mean=0.5,
        variance=math.nan,
        most_positive_activation_records=[ActivationRecord([0.0, top], ["a", "東"])],
    )


def pair_record(index: int) -> NeuronRecord:
    return NeuronRecord(
        NeuronId(index, 0),
        most_positive_activation_records=[ActivationRecord([1.0, 0.5, 2.0], ["a", "b"])],
    )


def explained(*explanations: tuple[str, float | None], index: int = 0) -> NeuronSimulationResults:
    return NeuronSimulationResults(
        NeuronId(index, 0),
        [ScoredExplanation(text, ScoredSimulation([], score)) for text, score in explanations],
    )


class World:
    """A folder with datasets, and the deployment that serves them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for index in range(4):
            self.write(f"mlp/0/{index}.json", record(index))
        self.write("mlp/1/7.json", record(7, layer=1))
        self.write("mlp/10/0.json", record(0, layer=10))
        self.write("more/0/9.json", record(9, top=4.0))
        self.write("more/0/0.json", record(0, top=8.0))
        self.write("attn/0/0.json", pair_record(0))
        self.write("expl/0/0.jsonl", explained(("vowels", 0.5), ("nothing", math.nan)))
        self.write("cached/b/0/0.jsonl", explained(("cached b", 0.1)))
        self.write("cached/a/0/0.jsonl", explained(("cached a", None)))
        (root / "mlp/0/17.json").write_bytes(encode(record(17))[:-9])

    def path(self, name: str) -> str:
        return str(self.root / name)

    def write(self, name: str, content: Any) -> None:
        write_atomically(self.root / name, encode(content))

    def deployment(self, url: str | None = None) -> Deployment:
        def dataset(short: str, scalar: str, folder: str, **more: Any) -> Dataset:
            return Dataset(
                short_name=short,
                derived_scalar_type=scalar,
                user_visible_name=f"{short} of {scalar}",
                neuron_dataset_path=self.path(folder),
                **more,
            )

        return Deployment(
            datasets=(
                dataset(
                    "pub",
                    MLP,
                    "mlp",
                    explanation_dataset_paths=(self.path("expl"),),
                    cached_explanations_path=self.path("cached"),
                ),
                dataset("more", MLP, "more"),
                dataset("pub", HEADS, "attn"),
                dataset("own", "residual", "nowhere", cached_explanations_path=self.path("none")),
            ),
            allowed_path_prefixes=(self.path("expl"), self.path("open")),
            cache=Cache(url=url),
            limits=Limits(queue=1000),
        )


@asynccontextmanager
async def connected(deployment: Deployment) -> AsyncIterator[grpc.aio.Channel]:
    async with record_services(deployment) as services:
        running = await start_server(services, ServerOptions("records", limits=deployment.limits))
        try:
            async with open_aio_channel(f"127.0.0.1:{running.port}") as channel:
                yield channel
        finally:
            await running.drain(5)


@asynccontextmanager
async def serving(deployment: Deployment) -> AsyncIterator[v1.RecordReaderStub]:
    async with connected(deployment) as channel:
        yield v1.RecordReaderStub(channel)


def token_request(index: int, *datasets: str, layer: int = 0, **view: bool) -> Any:
    return v1.GetTokenRecordRequest(
        component=component_id(MLP, layer, index),
        datasets=datasets or ["pub"],
        view=v1.RecordView(**view),
    )


async def failure_of(call: Any) -> NeuropilError:
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            if hasattr(call, "__aiter__"):
                _ = [item async for item in call]
            else:
                await call
    return caught.value


def scored_message(expected: list[float]) -> simulation.ScoredSimulation:
    tokens = [f"t{i}" for i in range(len(expected))]
    return simulation.ScoredSimulation(
        sequences=[
            simulation.ScoredSequenceSimulation(
                simulation=simulation.SequenceSimulation(
                    tokens=tokens,
                    expected_activations=to_tensor(expected),
                    activation_scale=simulation.ACTIVATION_SCALE_NEURON_ACTIVATIONS,
                    distribution_probabilities=to_tensor(np.full((len(tokens), 2), 0.5)),
                    distribution_values=to_tensor([0.0, 1.0]),
                    uncalibrated_expected_activations=to_tensor(np.array(expected) * 2),
                    uncalibrated_distribution_values=to_tensor([0.0, 2.0]),
                ),
                true_activations=to_tensor(expected),
                scores=simulation.Scores(ev_correlation=simulation.Score(value=1.0)),
            )
        ],
        scores=simulation.Scores(ev_correlation=simulation.Score(value=0.75)),
    )


def put_request(world: World, text: str, index: int = 0, folder: str = "expl") -> Any:
    return v1.PutExplanationRequest(
        component=component_id(MLP, 0, index),
        explanation_dataset=world.path(folder),
        explanation=text,
        scored_simulation=scored_message([0.0, 3.0]),
    )
