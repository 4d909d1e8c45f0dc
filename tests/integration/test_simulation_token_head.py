"""The demo's token head behind the simulation service, on a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from neuropil.channel import open_aio_channel
from neuropil.errors import NeuropilError, atranslated
from neuropil.simulation import v1
from neuropil.tensors import to_array
from services.simulation.app import simulation_services
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Deployment, TokenHeadSimulator
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.torch, pytest.mark.asyncio(loop_scope="module")]

FOLDER = REPOSITORY / "data" / "demo" / "token_head"
TOKENS = [" And", " thy", " servant", " shall", " go", " in", " thy", " way"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def simulation(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[v1.SimulationStub]:
    broken: Path = tmp_path_factory.mktemp("broken")
    (broken / "config.json").write_text('{"id2label": {"0": "no", "1": "yes"}}')
    deployment = Deployment(
        simulators=tuple(
            TokenHeadSimulator(name=name, kind="token_head", path=str(path), device="cpu")
            for name, path in (("head", FOLDER), ("broken", broken))
        ),
        default_simulator="head",
    )
    async with simulation_services(deployment) as services:
        server = await start_server(services, ServerOptions("simulation"))
        channel = open_aio_channel(f"127.0.0.1:{server.port}")
        yield v1.SimulationStub(channel)
        await channel.close()
        await server.drain(1)


async def test_explanations_are_told_apart(simulation: v1.SimulationStub) -> None:
    request = v1.SimulateExplanationsRequest(
        explanations=["the word 'thy'", "the word 'shall'"], tokens=TOKENS
    )
    async with atranslated():
        answers = [answer async for answer in simulation.SimulateExplanations(request)]
    assert [answer.position for answer in answers] == [0, 1]
    thy, shall = (to_array(answer.simulation.expected_activations) for answer in answers)
    assert set(np.argsort(thy)[-2:]) == {1, 6}
    assert np.argmax(shall) == 3
    assert [answer.cost.call_count for answer in answers] == [1, 0]


async def test_it_is_listed_with_what_was_found_out(simulation: v1.SimulationStub) -> None:
    async with atranslated():
        answer = await simulation.ListSimulators(v1.ListSimulatorsRequest())
    head, broken = answer.simulators
    assert (head.state, head.kind, head.is_default) == ("ready", "token_head", True)
    assert list(head.capabilities) == ["reads 256 pieces at once; longer sequences in windows"]
    assert not head.runs_language_model
    assert broken.state.startswith("failed: ")


async def test_a_broken_folder_is_unavailable(simulation: v1.SimulationStub) -> None:
    request = v1.SimulateExplanationsRequest(
        simulator="broken", explanations=["the word 'thy'"], tokens=TOKENS
    )
    with pytest.raises(NeuropilError, match="id2label has 2 labels") as caught:
        async with atranslated():
            async for _ in simulation.SimulateExplanations(request):
                pass
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "MODEL_NOT_LOADED")
