"""The chat simulator against a server that computes with the demo's model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from services.simulation.language_models.remote.model import RemoteLanguageModel
from services.simulation.language_models.remote.server import Server
from services.simulation.parsing import structured_answers as structured
from services.simulation.simulators.chat import ChatSimulator
from services.simulation.simulators.interface import SimulatedSequence
from tests.conftest import REPOSITORY
from tests.emulators.openai_server import OpenAiServer
from tests.emulators.small_model import SmallModel

MODEL = REPOSITORY / "data" / "demo" / "model"
EXPLANATION = "words about god"
TOKENS = ["And", " the", " Lord", "\n", " unto", " Mos", "es", ",", " caf", "é", "."]


@pytest.fixture(scope="module")
def running() -> Iterator[OpenAiServer]:
    with OpenAiServer(SmallModel.load(MODEL)) as server:
        yield server


@pytest.fixture
def served(running: OpenAiServer) -> OpenAiServer:
    running.reset()
    return running


def chat(served: OpenAiServer) -> ChatSimulator:
    return ChatSimulator("far", RemoteLanguageModel(Server(served.base_url, "demo"), "chat"))


async def simulate(simulator: ChatSimulator, tokens: list[str]) -> SimulatedSequence:
    (result,) = [each async for each in simulator.simulate(EXPLANATION, [tokens])]
    return result


def reasons(result: SimulatedSequence) -> dict[int, str]:
    assert not result.probabilities[[issue.position for issue in result.issues]].any()
    return {issue.position: issue.reason for issue in result.issues}


async def test_chat(served: OpenAiServer) -> None:
    simulator = chat(served)
    result = await simulate(simulator, TOKENS)
    assert not result.issues
    numbers = result.probabilities @ np.arange(11)
    assert (result.probabilities.max(axis=1) == 1).all()
    assert ((numbers >= 0) & (numbers <= 10)).all()
    (body,) = [body for body in served.traffic.bodies if EXPLANATION in str(body)]
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["activations"]["minItems"] == len(TOKENS)
    assert simulator.prompt_version.startswith("chat-1")
    odd = ["", "\t", "\n", '"', "\x00", "<|endoftext|>", "🙂", "[INST]"]
    result = await simulate(simulator, odd)
    assert not result.issues
    assert list(result.tokens) == odd
    assert not any("<|endoftext|>" in str(body) for body in served.traffic.bodies)
    await simulator.close()


async def test_no_answer_is_longer_than_models_write(served: OpenAiServer) -> None:
    simulator = chat(served)
    result = await simulate(simulator, ["a"] * 330)
    assert len(result.probabilities) == 330
    asked = [body for body in served.traffic.bodies if EXPLANATION in str(body)]
    limits = [body["max_tokens"] for body in asked]
    assert max(limits) <= 4096
    schemas = [body["response_format"]["json_schema"]["schema"] for body in asked]
    assert {schema["properties"]["activations"]["minItems"] for schema in schemas} >= {110}
    await simulator.close()


async def test_explanations_are_asked_for_in_order(served: OpenAiServer) -> None:
    simulator = chat(served)
    explanations = ["first of three", "second of three", "third of three"]
    found = simulator.simulate_explanations(explanations, TOKENS[:2])
    assert [len(result.tokens) async for result in found] == [2, 2, 2]
    for explanation in explanations:
        assert sum(explanation in str(body) for body in served.traffic.bodies) == 1
    await simulator.close()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", dict.fromkeys(range(3), structured.NO_ANSWER)),
        ("Sure!", dict.fromkeys(range(3), structured.NOT_JSON)),
        ([1, "2", 11], {1: structured.NOT_A_NUMBER, 2: structured.OUT_OF_RANGE}),
        ([1, 2], {2: structured.NO_ITEM}),
        ([1, 2, 3, 4], dict.fromkeys(range(3), structured.TOO_MANY)),
    ],
)
async def test_malformed_chat_answers(
    served: OpenAiServer, content: Any, expected: dict[int, str]
) -> None:
    simulator = chat(served)
    await simulate(simulator, ["a"])
    tokens = ["And", " the", " Lord"]
    if isinstance(content, list):
        names = [*tokens, "more"]
        items = [{"token": names[i], "activation": value} for i, value in enumerate(content)]
        content = json.dumps({"activations": items})

    def tampered(answer: dict[str, Any]) -> dict[str, Any]:
        answer["choices"][0]["message"] = {"role": "assistant", "content": content}
        return answer

    served.tamper = tampered
    result = await simulate(simulator, tokens)
    assert reasons(result) == expected
    assert result.report.valid == 3 - len(expected)
    await simulator.close()


async def test_a_chat_answer_that_is_cut_off(served: OpenAiServer) -> None:
    simulator = chat(served)

    def tampered(answer: dict[str, Any]) -> dict[str, Any]:
        answer["choices"][0]["message"]["content"] = '{"activations": [{"token": "a'
        answer["choices"][0]["finish_reason"] = "length"
        return answer

    await simulate(simulator, ["a"])
    served.tamper = tampered
    result = await simulate(simulator, ["a"])
    assert reasons(result) == {0: structured.CUT_OFF}
    await simulator.close()
