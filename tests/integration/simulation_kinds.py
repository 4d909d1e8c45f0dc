"""The simulation service with several kinds of simulators on the demo, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from neuropil.channel import open_aio_channel
from neuropil.errors import NeuropilError, atranslated
from neuropil.names import component_id
from neuropil.records import v1 as records_v1
from neuropil.simulation import v1
from services.records.app import record_services
from services.simulation.app import simulation_services
from shared.rpc.server import ServerOptions, start_server
from shared.settings import (
    CausalLmSimulator,
    ChatSimulator,
    ContextExplainer,
    Deployment,
    EmbeddingSimulator,
    LanguageModelExplainer,
    Services,
    load_deployment,
)
from tests.emulators.openai_server import OpenAiServer
from tests.emulators.small_model import SmallModel
from tests.load.processes import REPOSITORY
from tests.unit.small_language_models import configurations, save

DEMO = REPOSITORY / "data" / "demo" / "deployment.yaml"
MODEL = str(DEMO.parent / "model")
NEURON = ("mlp_post_act", 1, 3)
HEAD = ("attn_write_norm", 1, 0)
TOKENS = [" the", " lion", " of", " the", " land"]
EXPLANATIONS = ["animals such as lions", "the word 'of'"]
READY_SECONDS = 60


class World:
    """The services of a deployment, and how to start another simulation service of it."""

    def __init__(self, deployment: Deployment, records: records_v1.RecordReaderStub) -> None:
        self.deployment = deployment
        self.records = records
        self.simulation: v1.SimulationStub

    @asynccontextmanager
    async def another(self, **changes: Any) -> AsyncIterator[v1.SimulationStub]:
        deployment = self.deployment.model_copy(update=changes)
        async with AsyncExitStack() as stack:
            services = await stack.enter_async_context(simulation_services(deployment))
            server = await start_server(services, ServerOptions("simulation"))
            stack.push_async_callback(server.drain, 1)
            channel = open_aio_channel(f"127.0.0.1:{server.port}")
            stack.push_async_callback(channel.close)
            yield v1.SimulationStub(channel)


@asynccontextmanager
async def serving_kinds(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Records of the demo; simulators: embedding, local, slow (one at a time) and far (chat)."""
    ours = tmp_path_factory.mktemp("ours")
    roomy = configurations()["gpt2"]
    roomy.n_positions = 4096
    model = str(save(roomy, tmp_path_factory.mktemp("models") / "roomy"))
    demo = load_deployment(DEMO).model_copy(update={"allowed_path_prefixes": (str(ours),)})
    async with AsyncExitStack() as stack:
        chat_server = stack.enter_context(OpenAiServer(SmallModel.load(Path(MODEL))))
        records = await start_server(
            await stack.enter_async_context(record_services(demo)), ServerOptions("records")
        )
        stack.push_async_callback(records.drain, 1)
        address = f"127.0.0.1:{records.port}"
        channel = open_aio_channel(address)
        stack.push_async_callback(channel.close)
        deployment = demo.model_copy(
            update={
                "services": Services(records=address),
                "simulators": (
                    EmbeddingSimulator(name="embedding", kind="embedding"),
                    CausalLmSimulator(name="local", kind="causal_lm", path=model),
                    CausalLmSimulator(
                        name="slow", kind="causal_lm", path=model, method="one_at_a_time"
                    ),
                    ChatSimulator(
                        name="far", kind="chat", base_url=chat_server.base_url, model="demo"
                    ),
                ),
                "explainers": (
                    ContextExplainer(name="context", kind="context"),
                    LanguageModelExplainer(name="asking", kind="language_model", simulator="local"),
                ),
                "simulation_state": str(tmp_path_factory.mktemp("state")),
            }
        )
        world = World(deployment, records_v1.RecordReaderStub(channel))
        world.simulation = await stack.enter_async_context(world.another())
        yield world


def recorded(component: tuple[str, int, int] = NEURON) -> v1.RecordedComponent:
    return v1.RecordedComponent(component=component_id(*component), datasets=["demo"])


def request(component: tuple[str, int, int] = NEURON, **fields: Any) -> v1.ScoreExplanationRequest:
    given = {"explanation": "animals", "max_sequences": 3, **fields}
    return v1.ScoreExplanationRequest(recorded_component=recorded(component), **given)


async def all_of(call: Any) -> list[Any]:
    async with atranslated():
        return [response async for response in call]


async def result_of(stub: v1.SimulationStub, asked: v1.ScoreExplanationRequest) -> Any:
    events = await all_of(stub.ScoreExplanation(asked))
    assert all(event.HasField("progress") for event in events[:-1])
    return events[-1].result


async def refusal(call: Any) -> NeuropilError:
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            if isinstance(call, grpc.aio.UnaryStreamCall):
                [response async for response in call]
            else:
                await call
    return caught.value
