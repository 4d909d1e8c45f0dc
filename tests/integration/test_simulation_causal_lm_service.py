"""Local language models behind the simulation service, over real sockets, with the demo's model."""

from __future__ import annotations

import asyncio
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
from services.simulation.language_models.local.language_model import LocalLanguageModel
from services.simulation.simulators.causal_lm import CausalLmSimulator
from shared.errors import ConfigurationError
from shared.rpc.server import ServerOptions, start_server
from shared.settings import CausalLmSimulator as CausalLmSettings
from shared.settings import Deployment
from tests.integration.simulation_running import columns

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.torch]

DEMO = str(Path(__file__).parents[2] / "data" / "demo" / "model")
TOKENS = ["The", " red", " house", ",", "\n", " not", " a", " blue", "\t", "ish", " one", "."]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub() -> AsyncIterator[v1.SimulationStub]:
    deployment = Deployment(
        simulators=(
            CausalLmSettings(name="whole", kind="causal_lm", path=DEMO),
            CausalLmSettings(name="single", kind="causal_lm", path=DEMO, method="one_at_a_time"),
            CausalLmSettings(name="refused", kind="causal_lm", path=DEMO, prompt="few_shot-1"),
        ),
        default_simulator="whole",
    )
    async with simulation_services(deployment) as simulation:
        server = await start_server(simulation, ServerOptions("simulation"))
        channel = open_aio_channel(f"127.0.0.1:{server.port}")
        yield v1.SimulationStub(channel)
        await channel.close()
        await server.drain(1)


async def simulated(
    stub: v1.SimulationStub, simulator: str, explanation: str, *sequences: list[str]
) -> list[v1.SimulateResponse]:
    request = v1.SimulateRequest(
        simulator=simulator, explanation=explanation, sequences=columns(*sequences)
    )
    async with atranslated():
        return [answer async for answer in stub.Simulate(request)]


async def test_what_was_found_out_is_listed(stub: v1.SimulationStub) -> None:
    await simulated(stub, "whole", "colors", TOKENS)
    await simulated(stub, "single", "colors", TOKENS[:1])
    with pytest.raises(NeuropilError):
        await simulated(stub, "refused", "colors", TOKENS)
    listed = await stub.ListSimulators(v1.ListSimulatorsRequest())
    whole, single, refused = listed.simulators
    assert whole.kind == "causal_lm"
    assert whole.has_exact_probabilities
    assert whole.runs_language_model
    assert (whole.state, single.state) == ("ready", "ready")
    assert whole.prompt_version.startswith("compact-1+")
    assert single.prompt_version.startswith("one_at_a_time_compact-1+")
    assert whole.model == single.model
    assert whole.model.startswith("model@")
    assert any("128 tokens" in sentence for sentence in whole.capabilities)
    assert refused.state.startswith("failed: the prompt few_shot-1")
    assert not refused.capabilities


async def test_the_service_answers_what_the_simulator_does(stub: v1.SimulationStub) -> None:
    long = "".join(f" word{number}" for number in range(100))
    (answer,) = await simulated(stub, "whole", "colors", [*TOKENS, long])
    simulator = CausalLmSimulator("same", LocalLanguageModel(DEMO))
    (expected,) = [r async for r in simulator.simulate("colors", [[*TOKENS, long]])]
    await simulator.close()
    sent = to_array(answer.simulation.distribution_probabilities)
    assert sent == pytest.approx(expected.probabilities, abs=1e-4)
    values = to_array(answer.simulation.expected_activations)
    assert values[:-1] == pytest.approx(sent[:-1] @ np.arange(11), abs=1e-4)
    assert np.isnan(values[-1])
    assert answer.simulation.validity.missing_token_count == 1
    assert answer.cost.prompt_tokens_computed > 0


async def test_many_explanations_share_what_comes_before_them(stub: v1.SimulationStub) -> None:
    request = v1.SimulateExplanationsRequest(
        simulator="whole", explanations=["colors", "houses", "numbers"], tokens=TOKENS
    )
    async with atranslated():
        answers = [answer async for answer in stub.SimulateExplanations(request)]
    assert [answer.position for answer in answers] == [0, 1, 2]
    assert all(answer.cost.prompt_tokens_reused > 0 for answer in answers)
    for answer, explanation in zip(answers, request.explanations, strict=True):
        (alone,) = await simulated(stub, "whole", explanation, TOKENS)
        assert to_array(answer.simulation.distribution_probabilities) == pytest.approx(
            to_array(alone.simulation.distribution_probabilities), abs=1e-4
        )


@pytest.mark.parametrize(
    ("simulator", "explanation", "code", "reason", "field"),
    [
        ("refused", "colors", "FAILED_PRECONDITION", "CONTEXT_TOO_SHORT", ""),
        (
            "whole",
            "colors of things " * 30,
            "RESOURCE_EXHAUSTED",
            "EXPLANATION_TOO_LONG",
            "explanation",
        ),
        ("whole", "   ", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "explanation"),
    ],
)
async def test_what_cannot_be_simulated_is_refused(
    stub: v1.SimulationStub, simulator: str, explanation: str, code: str, reason: str, field: str
) -> None:
    with pytest.raises(NeuropilError) as caught:
        await simulated(stub, simulator, explanation, TOKENS)
    assert (caught.value.code, caught.value.reason, caught.value.field) == (code, reason, field)


async def test_a_cancelled_call_leaves_the_others_alone(stub: v1.SimulationStub) -> None:
    first = asyncio.create_task(simulated(stub, "single", "colors", *[TOKENS * 4] * 50))
    await simulated(stub, "whole", "colors", TOKENS)
    assert not first.done()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    (answer,) = await simulated(stub, "single", "colors", TOKENS)
    assert len(answer.simulation.tokens) == len(TOKENS)


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"prompt": "nothing-1"}, "simulators[0].prompt", "there is no prompt 'nothing-1'"),
        ({"prompt": "chat-1"}, "simulators[0].prompt", "a prompt for the method chat"),
        ({"path": "/nowhere"}, "simulators[0].path", "is not a folder"),
    ],
)
async def test_a_wrong_configuration_is_refused_at_start(
    options: dict[str, str], key: str, message: str
) -> None:
    settings = CausalLmSettings(name="x", kind="causal_lm", **{"path": DEMO, **options})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=message) as caught:
        async with simulation_services(Deployment(simulators=(settings,), default_simulator="x")):
            pass
    assert caught.value.key == key
