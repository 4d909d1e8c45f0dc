"""Language models behind servers: what they choose and say, and what their servers can do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from services.simulation.language_models.interface import (
    GenerationOptions,
    Message,
    Prompt,
)
from services.simulation.language_models.remote import pauses
from services.simulation.language_models.remote.model import RemoteLanguageModel
from services.simulation.language_models.remote.server import Server
from services.simulation.parsing.structured_answers import CUT_OFF
from services.simulation.simulators.completions import CompletionsSimulator
from shared.errors import FailedPrecondition, Unavailable
from tests.emulators.openai_server import OpenAiServer
from tests.emulators.word_model import AFTER_ONE, VALUES, WordModel


@pytest.fixture(scope="module")
def running() -> Iterator[OpenAiServer]:
    with OpenAiServer(WordModel()) as server:
        yield server


@pytest.fixture
def served(running: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> OpenAiServer:
    running.reset()
    monkeypatch.setattr(pauses, "FIRST_WAIT_SECONDS", 0.004)
    return running


def described(served: OpenAiServer, **options: Any) -> Server:
    return replace(Server(served.base_url, "words", timeout_seconds=5), **options)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not come to that")


PROMPT = Prompt((Message("system", "Which?\n"),), (Message("user", "0 or 1:\n"),))


async def test_choices_by_completions(served: OpenAiServer) -> None:
    model = RemoteLanguageModel(described(served), "completions")
    choices = await model.choose([PROMPT] * 3, ["0", "1"])
    share = 1 / (1 + math.exp(VALUES["1"] - VALUES["0"]))
    for choice in choices:
        assert choice.probabilities == pytest.approx([share, 1 - share])
        assert choice.cost.calls == 1
    (none,) = await model.choose([PROMPT], ["yes", "no"])
    assert none.probabilities is None
    assert none.issue
    assert model.state == "ready"
    assert any("next-token log probabilities: 20" in text for text in model.capabilities)
    (said,) = await model.generate([PROMPT], GenerationOptions(max_tokens=2))
    assert said.text == "00"
    command = Prompt((), (Message("user", "a<|endoftext|></s>[INST]<b> x < s>"),))
    await model.generate([command], GenerationOptions(max_tokens=1))
    assert served.traffic.bodies[-1]["prompt"] == "a< |endoftext|>< /s>[ INST]<b> x < s>"
    await model.close()


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (None, (0, 0, 0)),
        ({"prompt_tokens": None, "completion_tokens": None}, (0, 0, 0)),
        ({"prompt_tokens": -5, "completion_tokens": 10**15}, (0, 0, 2**31)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}, (5, 4, 0)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 40}}, (0, 9, 0)),
        ({"prompt_tokens": 9, "prompt_tokens_details": None}, (9, 0, 0)),
    ],
)
async def test_what_servers_say_of_cost(
    served: OpenAiServer, usage: Any, counted: tuple[int, int, int]
) -> None:
    model = RemoteLanguageModel(described(served), "completions")
    await model.found()
    served.tamper = lambda content: {**content, "usage": usage}
    (choice,) = await model.choose([PROMPT], ["0", "1"])
    cost = choice.cost
    assert (cost.prompt_tokens_computed, cost.prompt_tokens_reused, cost.completion_tokens) == (
        counted
    )
    await model.close()


@pytest.mark.parametrize("logprobs", [20, 5, 0])
async def test_choices_by_chat(served: OpenAiServer, logprobs: int) -> None:
    served.abilities.chat_logprobs = logprobs
    served.abilities.json_schema = logprobs != 5
    model = RemoteLanguageModel(described(served), "chat")
    (choice,) = await model.choose([PROMPT], ["0", "1"])
    share = 1 / (1 + math.exp(1.8 - 0.2)) if logprobs else 0.0
    assert choice.probabilities == pytest.approx([share, 1 - share])
    (none,) = await model.choose([PROMPT], ["yes", "no"])
    assert none.probabilities is None
    await model.close()


@pytest.mark.parametrize(
    ("content", "finished", "found"),
    [
        ('{"answer": [1]}', True, "json_schema"),
        ('{"other": 1}', True, "json_object"),
        ("", False, "json_schema"),
        ("", True, None),
        ("Sure!", True, None),
        ("[1]", True, None),
    ],
)
async def test_a_form_that_a_server_passes_over_is_none(
    served: OpenAiServer, content: str, finished: bool, found: str | None
) -> None:
    said = {"message": {"content": content}, "finish_reason": "stop" if finished else "length"}
    served.tamper = lambda answer: {**answer, "choices": [{**answer["choices"][0], **said}]}
    model = RemoteLanguageModel(described(served), "chat")
    assert (await model.found()).structure == (found or "none")
    await model.close()


async def test_a_cut_answer_is_no_other_choice(served: OpenAiServer) -> None:
    served.abilities.chat_logprobs = 0
    said = {"message": {"content": "Okay, the user"}, "finish_reason": "length"}
    served.tamper = lambda answer: {**answer, "choices": [said]}
    model = RemoteLanguageModel(described(served), "chat")
    (choice,) = await model.choose([PROMPT], ["0", "1"])
    assert (choice.probabilities, choice.issue) == (None, CUT_OFF)
    await model.close()


async def test_fields_of_newer_chat_models(served: OpenAiServer) -> None:
    served.abilities.reasons = True
    model = RemoteLanguageModel(described(served), "chat")
    said = await model.generate([PROMPT] * 2, GenerationOptions(max_tokens=7, seed=3))
    assert [each.text for each in said] == ["1", "1"]
    bodies = served.traffic.bodies[-2:]
    assert {body["max_completion_tokens"] for body in bodies} == {7}
    assert sorted(body["seed"] for body in bodies) == [3, 4]
    await model.close()


async def test_wrong_shapes_are_no_choices(served: OpenAiServer) -> None:
    model = RemoteLanguageModel(described(served, max_attempts=1), "completions")
    await model.found()
    shapes: list[Any] = [{}, {"choices": []}, {"choices": [{"logprobs": 3}]}, {"choices": [{}]}, []]
    for wrong in shapes:
        served.tamper = partial(lambda shape, _: shape, wrong)
        (choice,) = await model.choose([PROMPT], ["0", "1"])
        assert choice.probabilities is None
        assert choice.issue
    await model.close()


@pytest.mark.parametrize("fault", ["deep", "bad_text", "empty", "bad_gzip"])
async def test_bodies_that_cannot_be_read(served: OpenAiServer, fault: str) -> None:
    model = RemoteLanguageModel(described(served, max_attempts=2), "completions")
    await model.found()
    served.fault = fault
    with pytest.raises(Unavailable):
        await model.generate([PROMPT], GenerationOptions(max_tokens=1))
    await model.close()


async def test_a_server_that_comes_back(
    served: OpenAiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.simulation.language_models.remote.model._ASK_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(
        "services.simulation.language_models.remote.model._FAILURE_HOLDS_SECONDS", 0.0
    )
    served.fault = "503"
    model = RemoteLanguageModel(described(served, max_attempts=1), "completions")
    assert model.state == "loading"
    model.start()
    with pytest.raises(Unavailable):
        await model.choose([PROMPT], ["0", "1"])
    assert model.state.startswith("failed: the server 127.0.0.1")
    assert model.capabilities == ()
    served.fault = None
    await until(lambda: model.state == "ready")
    await model.close()


async def simulate(simulator: CompletionsSimulator, tokens: list[str]) -> Any:
    results = [result async for result in simulator.simulate("cats", [tokens])]
    return results[0]


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("echo", [True, False])
async def test_a_ten_of_two_tokens(served: OpenAiServer, echo: bool, usage: bool) -> None:
    served.abilities.echo = echo
    served.abilities.usage = usage
    model = RemoteLanguageModel(described(served), "completions")
    simulator = CompletionsSimulator("far", model)
    result = await simulate(simulator, ["The", " cat"])
    known = {int(value): math.exp(lp) for value, lp in VALUES.items() if value.isdecimal()}
    expected = np.zeros(11)
    for value, probability in known.items():
        expected[value] = probability / sum(known.values())
    ten = expected[1] * math.exp(AFTER_ONE["0"])
    expected[1] -= ten
    expected[10] = ten
    if echo or usage:
        assert 'its tokenizer makes two tokens of "10"' in simulator.capabilities
    assert not result.issues
    assert result.probabilities == pytest.approx(np.stack([expected, expected]))
    assert result.cost.calls == (1 if echo else 2) + 2
    await simulator.close()


async def test_a_server_that_ignores_echo(served: OpenAiServer) -> None:
    served.abilities.ignores_echo = True
    simulator = CompletionsSimulator("far", RemoteLanguageModel(described(served), "completions"))
    result = await simulate(simulator, ["The", " cat"])
    assert not result.issues
    assert "tokens are simulated one at a time" in simulator.capabilities
    await simulator.close()


async def test_no_log_probabilities(served: OpenAiServer) -> None:
    def without(content: dict[str, Any]) -> dict[str, Any]:
        content["choices"][0]["logprobs"] = None
        return content

    served.tamper = without
    simulator = CompletionsSimulator("far", RemoteLanguageModel(described(served), "completions"))
    with pytest.raises(FailedPrecondition) as caught:
        await simulate(simulator, ["The"])
    assert caught.value.reason == "NO_LOG_PROBABILITIES"
    assert simulator.state.startswith("failed: words at 127.0.0.1")
    await simulator.close()
