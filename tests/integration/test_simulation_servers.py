"""The simulation service with simulators that ask servers: what a caller of it sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from neuropil.channel import open_aio_channel
from neuropil.errors import NeuropilError, atranslated
from neuropil.simulation import v1
from neuropil.tensors import to_array
from services.simulation.app import simulation_services
from services.simulation.language_models.remote import pauses
from shared.errors import ConfigurationError
from shared.rpc.server import ServerOptions, start_server
from shared.settings import ChatSimulator, CompletionsSimulator, Deployment
from tests.emulators.openai_server import OpenAiServer
from tests.emulators.word_model import WordModel
from tests.integration.simulation_running import columns

KEY = "sk-secret-0123456789"
TOKENS = ["The", " cat", " sat"]


@pytest.fixture(scope="module")
def running() -> Iterator[OpenAiServer]:
    with OpenAiServer(WordModel(), key=KEY) as server:
        yield server


@pytest.fixture
def served(running: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> OpenAiServer:
    running.reset()
    monkeypatch.setattr(pauses, "FIRST_WAIT_SECONDS", 0.004)
    monkeypatch.setenv("FAR_KEY", KEY)
    return running


def deployment(served: OpenAiServer, **options: Any) -> Deployment:
    options = {"base_url": served.base_url, "model": "words", "api_key_env": "FAR_KEY", **options}
    return Deployment(
        simulators=(
            CompletionsSimulator(name="far", kind="completions", **options),
            ChatSimulator(name="talks", kind="chat", **options),
        )
    )


@asynccontextmanager
async def serving(described: Deployment) -> AsyncIterator[v1.SimulationStub]:
    async with simulation_services(described) as simulation:
        server = await start_server(simulation, ServerOptions("simulation"))
        channel = open_aio_channel(f"127.0.0.1:{server.port}")
        yield v1.SimulationStub(channel)
        await channel.close()
        await server.drain(1)


async def simulate(
    stub: v1.SimulationStub, simulator: str = "far", seconds: float = 30
) -> v1.SimulateResponse:
    request = v1.SimulateRequest(simulator=simulator, explanation="cats", sequences=columns(TOKENS))
    async with atranslated():
        (answer,) = [each async for each in stub.Simulate(request, timeout=seconds)]
    return answer


async def test_simulators_say_what_their_server_can_do(served: OpenAiServer) -> None:
    async with serving(deployment(served)) as stub:
        answer = await simulate(stub)
        probabilities = to_array(answer.simulation.distribution_probabilities)
        assert probabilities.sum(axis=1) == pytest.approx(1)
        assert answer.cost.call_count >= 1
        listed = await stub.ListSimulators(v1.ListSimulatorsRequest())
        assert served.traffic.requests > 0
    far = next(each for each in listed.simulators if each.name == "far")
    assert far.state == "ready"
    assert far.prompt_version.startswith("few_shot-1")
    assert far.has_exact_probabilities
    assert any("echo" in text for text in far.capabilities)
    assert KEY not in str(listed)


async def test_servers_are_asked_before_the_first_call(served: OpenAiServer) -> None:
    served.abilities.echo = False
    async with serving(deployment(served)) as stub:
        for _ in range(2000):
            listed = await stub.ListSimulators(v1.ListSimulatorsRequest())
            far = next(each for each in listed.simulators if each.name == "far")
            if any("one at a time" in text for text in far.capabilities):
                break
            await asyncio.sleep(0.005)
        else:
            pytest.fail(f"it did not find out: {far}")
    assert far.state == "ready"
    assert far.prompt_version.startswith("one_at_a_time-1")


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        ("500", "UNAVAILABLE", "LANGUAGE_MODEL_SERVER_FAILS"),
        ("cut", "UNAVAILABLE", "LANGUAGE_MODEL_SERVER_UNREACHABLE"),
        ("429", "RESOURCE_EXHAUSTED", "LANGUAGE_MODEL_QUOTA"),
        ("403", "FAILED_PRECONDITION", "LANGUAGE_MODEL_KEY_REFUSED"),
        ("redirect", "FAILED_PRECONDITION", "LANGUAGE_MODEL_SERVER_REDIRECTS"),
        ("400", "FAILED_PRECONDITION", "LANGUAGE_MODEL_SERVER_REFUSES"),
        ("hangs", "DEADLINE_EXCEEDED", ""),
    ],
)
async def test_statuses(served: OpenAiServer, fault: str, code: str, reason: str) -> None:
    async with serving(deployment(served, max_attempts=2)) as stub:
        await simulate(stub)
        served.fault = fault
        with pytest.raises(NeuropilError) as caught:
            await simulate(stub, seconds=0.3 if fault == "hangs" else 30)
    assert caught.value.code == code
    if reason:
        assert caught.value.reason == reason
        assert "127.0.0.1" in caught.value.message
    assert KEY not in repr(vars(caught.value))


async def test_answers_that_cannot_be_read_are_reported(served: OpenAiServer) -> None:
    async with serving(deployment(served, max_attempts=1)) as stub:
        answer = await simulate(stub, "talks")
        # The chat server of this test answers "1", which is no list of activations.
        assert answer.simulation.validity.malformed_token_count == 3
        served.fault = "garbage"
        answer = await simulate(stub)
        assert answer.simulation.validity.malformed_token_count == 3
        (reason,) = answer.simulation.validity.token_count_by_reason
        assert "not JSON" in reason


async def test_a_key_that_is_not_set(served: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAR_KEY")
    with pytest.raises(ConfigurationError, match=r"simulators\[0\].api_key_env: .*FAR_KEY"):
        async with simulation_services(deployment(served)):
            pass
