"""The planted model recorded and served: real services over sockets, an oracle as the simulator."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from neuropil.channel import open_aio_channel
from neuropil.errors import atranslated
from neuropil.names import component_id
from neuropil.simulation import v1
from services.collate.collation import SampleSizes
from services.collate.job import Summary, collate
from services.collate.options import Dataset as Collated
from services.collate.options import Options
from services.collate.source import ScalarsService
from services.records.app import record_services
from services.scalars.app import scalar_services
from services.simulation.app import simulation_services
from services.simulation.simulators.registry import SimulatorRegistry
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Dataset, Deployment, Model, Services
from tests.planted.meaning import text
from tests.planted.model import save
from tests.planted.oracle import OracleSimulator

SCALAR_TYPE = "mlp_post_act"
SEQUENCE_TOKENS = 24


class _Silent:
    """Nobody watches."""

    def stage(self, name: str, total: int | None, completed: int = 0) -> None:
        """As `Reporter.stage`."""

    def advance(self, count: int = 1) -> None:
        """As `Reporter.advance`."""


async def record(folder: Path, sentences: int = 300, seed: int = 5) -> Summary:
    """Write the model and, through the derived-scalars service, the records of its neurons."""
    save(folder / "model")
    corpus = folder / "corpus.jsonl"
    lines = [json.dumps({"text": "".join(each)}) for each in text(seed, sentences, SEQUENCE_TOKENS)]
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = Options(
        corpus=str(corpus),
        out=folder / "records",
        datasets=(Collated("mlp", SCALAR_TYPE),),
        most_tokens=SEQUENCE_TOKENS,
        sizes=SampleSizes(top=24, random=60, per_quantile=0, quantiles=()),
        significant_digits=None,
    )
    model = Model(name="planted", path=str(folder / "model"), device="cpu")
    async with scalar_services(Deployment(model=model)) as services:
        server = await start_server(services, ServerOptions("scalars"))
        source = ScalarsService(f"127.0.0.1:{server.port}")
        try:
            return await collate(options, source, _Silent())
        finally:
            await source.close()
            await server.drain(1)


@dataclass(frozen=True)
class Planted:
    """The records of the planted model, and a simulation service that reads them."""

    simulation: v1.SimulationStub
    records: Path

    async def scored(
        self, layer: int, neuron: int, explanation: str, kind: v1.CalibrationKind
    ) -> v1.ScoredExplanation:
        """Score an explanation of a neuron on its record."""
        request = v1.ScoreExplanationRequest(
            recorded_component=v1.RecordedComponent(
                component=component_id(SCALAR_TYPE, layer, neuron), datasets=["planted"]
            ),
            explanation=explanation,
            calibration_kind=kind,
        )
        async with atranslated():
            events = [event async for event in self.simulation.ScoreExplanation(request)]
        return events[-1].result


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Planted]:
    """Record the model, and serve records and simulation."""
    await record(folder)
    dataset = Dataset(
        short_name="planted",
        derived_scalar_type=SCALAR_TYPE,
        user_visible_name="planted model",
        neuron_dataset_path=str(folder / "records" / "mlp"),
    )
    async with record_services(Deployment(datasets=(dataset,))) as records:
        record_server = await start_server(records, ServerOptions("records"))
        deployment = Deployment(
            datasets=(dataset,), services=Services(records=f"127.0.0.1:{record_server.port}")
        )
        simulators = SimulatorRegistry([OracleSimulator()], "oracle")
        async with simulation_services(deployment, simulators) as simulation:
            server = await start_server(simulation, ServerOptions("simulation"))
            channel = open_aio_channel(f"127.0.0.1:{server.port}")
            yield Planted(v1.SimulationStub(channel), folder / "records" / "mlp")
            await channel.close()
            await server.drain(1)
        await record_server.drain(1)
