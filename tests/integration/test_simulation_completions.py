"""Completions and chat simulators against a server that computes with the demo's model."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from services.simulation.language_models.interface import Message, Prompt
from services.simulation.language_models.local.language_model import LocalLanguageModel
from services.simulation.language_models.remote import pauses
from services.simulation.language_models.remote.model import RemoteLanguageModel
from services.simulation.language_models.remote.server import Server
from services.simulation.parsing.echoed_prompts import NEWLINE_FOLDED, NO_LOGPROBS, OTHER_TEXT
from services.simulation.parsing.value_logprobs import NO_VALUE, NOT_A_LOGPROB
from services.simulation.simulators.causal_lm import CausalLmSimulator
from services.simulation.simulators.completions import CompletionsSimulator
from services.simulation.simulators.interface import SimulatedSequence, Simulator, TokenOutcome
from shared.errors import (
    ConfigurationError,
    DeadlineExceeded,
    FailedPrecondition,
    NeuropilError,
    ResourceExhausted,
    Unavailable,
)
from shared.rpc.context import enter_deadline
from tests.conftest import REPOSITORY
from tests.emulators.openai_server import OpenAiServer
from tests.emulators.small_model import SmallModel

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = REPOSITORY / "data" / "demo" / "model"
EXPLANATION = "words about god"
TOKENS = ["And", " the", " Lord", " said", " unto", " Mos", "es", ",", " caf", "é", "."]


@pytest.fixture(scope="module")
def running() -> Iterator[OpenAiServer]:
    with OpenAiServer(SmallModel.load(MODEL)) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local() -> AsyncIterator[LocalLanguageModel]:
    model = LocalLanguageModel(str(MODEL), "cpu")
    yield model
    await model.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(local: LocalLanguageModel) -> NDArray[np.float64]:
    """What the local model says of TOKENS."""
    (result,) = await simulate(CausalLmSimulator("near", local), TOKENS)
    assert not result.issues
    return result.probabilities


@pytest.fixture
def served(running: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> OpenAiServer:
    running.reset()
    monkeypatch.setattr(pauses, "FIRST_WAIT_SECONDS", 0.004)
    return running


def completions(served: OpenAiServer, **options: Any) -> CompletionsSimulator:
    method = options.pop("method", "auto")
    server = replace(Server(served.base_url, "demo"), **options)
    return CompletionsSimulator("far", RemoteLanguageModel(server, "completions"), method=method)


async def simulate(
    simulator: Simulator, *sequences: list[str], explanation: str = EXPLANATION
) -> list[SimulatedSequence]:
    return [result async for result in simulator.simulate(explanation, sequences)]


def reasons(result: SimulatedSequence) -> dict[int, str]:
    assert not result.probabilities[[issue.position for issue in result.issues]].any()
    return {issue.position: issue.reason for issue in result.issues}


async def test_as_a_local_model(served: OpenAiServer, expected: NDArray[np.float64]) -> None:
    far = completions(served)
    (result,) = await simulate(far, TOKENS)
    assert not result.issues
    assert result.probabilities == pytest.approx(expected, abs=1e-5)
    assert far.prompt_version.startswith("compact-1")
    assert "tokens are simulated all at once" in far.capabilities
    assert result.cost.calls == 1
    assert result.cost.prompt_tokens_computed > 0
    await far.close()


WAYS: dict[str, dict[str, Any]] = {
    "echo with a token": {"max_tokens_zero": False},
    "vLLM's prompt_logprobs": {"echo": False},
    "vLLM's halves of characters": {"merges_bytes": True},
    "no usage": {"usage": False},
    "next tokens": {"echo": False, "prompt_logprobs": False},
    "llama.cpp": {"ignores_echo": True, "prompt_logprobs": False, "content_logprobs": True},
}


@pytest.mark.parametrize("way", list(WAYS))
async def test_all_ways_agree(
    served: OpenAiServer, expected: NDArray[np.float64], way: str
) -> None:
    for name, value in WAYS[way].items():
        setattr(served.abilities, name, value)
    simulator = completions(served)
    if way in ("next tokens", "llama.cpp"):
        # The same prompt up to each value; the other prompt of this method says other things.
        server = simulator.language_model.server
        model = RemoteLanguageModel(server, "completions")
        simulator = CompletionsSimulator("far", model, prompt="compact-1")
    (result,) = await simulate(simulator, TOKENS)
    assert not result.issues
    # A forward pass over fewer tokens rounds otherwise.
    assert result.probabilities == pytest.approx(expected, abs=1e-5)
    single = way in ("next tokens", "llama.cpp")
    assert result.cost.calls == (len(TOKENS) if single else 1)
    await simulator.close()


async def test_one_at_a_time(served: OpenAiServer) -> None:
    near = CausalLmSimulator("near", LocalLanguageModel(str(MODEL), "cpu"), method="one_at_a_time")
    far = completions(served, method="one_at_a_time")
    (expected,), (result,) = await simulate(near, TOKENS[:4]), await simulate(far, TOKENS[:4])
    assert not result.issues
    assert result.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert far.prompt_version == near.prompt_version
    assert result.cost.calls == 4
    await far.close()


async def test_reused_prompts_are_counted(served: OpenAiServer) -> None:
    simulator = completions(served)
    await simulate(simulator, TOKENS)
    (again,) = await simulate(simulator, TOKENS)
    total = again.cost.prompt_tokens_computed + again.cost.prompt_tokens_reused
    assert again.cost.prompt_tokens_reused > 0.8 * total
    assert again.cost.seconds > 0
    await simulator.close()


async def test_long_sequences_are_cut_into_windows(served: OpenAiServer) -> None:
    simulator = completions(served)
    (result, short) = await simulate(simulator, TOKENS * 6, TOKENS[:2])
    assert not result.issues
    assert len(result.tokens) == len(result.probabilities) == 66
    assert result.probabilities.sum(axis=1) == pytest.approx(1)
    assert result.cost.calls >= 3
    assert not short.issues
    with pytest.raises(ResourceExhausted) as caught:
        await simulate(simulator, TOKENS, explanation="word " * 200)
    assert caught.value.reason == "EXPLANATION_TOO_LONG"
    assert caught.value.field == "explanation"
    (odd,) = await simulate(simulator, ["a", "word " * 200, "b"])
    assert list(reasons(odd)) == [1]
    assert odd.issues[0].outcome is TokenOutcome.MISSING
    await simulator.close()


async def test_a_sequence_is_the_same_among_others(served: OpenAiServer) -> None:
    simulator = completions(served)
    fits, longer = TOKENS[:8] * 2, [TOKENS * 4, TOKENS[4:] * 4]
    (alone,) = await simulate(simulator, fits)
    assert alone.cost.calls == 1
    first = await simulate(simulator, *longer, fits)
    second = await simulate(simulator, *longer[::-1], fits)
    for result, again in zip([*first[:2], alone], [second[1], second[0], first[2]], strict=True):
        assert not result.issues
        assert result.probabilities == pytest.approx(again.probabilities, abs=1e-5)
    await simulator.close()


async def test_one_at_a_time_the_windows_are_settled_by_the_last_token(
    served: OpenAiServer,
) -> None:
    simulator = completions(served, method="one_at_a_time")
    await simulate(simulator, ["a"])
    before = served.traffic.requests
    served.delay = 0.02
    (result,) = await simulate(simulator, TOKENS * 8)
    assert not result.issues
    # No other token is refused and asked for again.
    refused = served.traffic.requests - before - len(TOKENS * 8)
    assert 1 <= refused <= 3
    await simulator.close()


async def test_explanations_are_asked_for_at_the_same_time(served: OpenAiServer) -> None:
    simulator = completions(served, max_concurrent=3)
    explanations = [f"words about {what}" for what in ("god", "cats", "rivers", "numbers")]
    alone = [(await simulate(simulator, TOKENS, explanation=each))[0] for each in explanations]
    served.traffic.most_running = 0
    served.delay = 0.05
    found = simulator.simulate_explanations(explanations, TOKENS)
    results = [result async for result in found]
    assert 1 < served.traffic.most_running <= 3
    for result, own in zip(results, alone, strict=True):
        assert result.probabilities == pytest.approx(own.probabilities, abs=1e-5)
    with pytest.raises(ResourceExhausted) as caught:
        async for _ in simulator.simulate_explanations(["a", "word " * 200, "b"], TOKENS):
            pass
    assert caught.value.field == "explanations[1]"
    await simulator.close()


async def test_odd_tokens(served: OpenAiServer) -> None:
    odd = ["", "\t", "\n", "a\tb", "a\nb", "\x00", "<|endoftext|>", "🙂", "\ufffd", " ", "?"]
    simulator = completions(served)
    (result,) = await simulate(simulator, odd)
    assert result.report.coverage > 0.5
    assert set(reasons(result).values()) <= {NEWLINE_FOLDED}
    assert list(result.tokens) == odd
    # Never as the command that it reads as.
    assert not any("<|endoftext|>" in str(body) for body in served.traffic.bodies)
    await simulator.close()


@pytest.mark.parametrize("method", ["all_at_once", "one_at_a_time"])
async def test_nothing_that_is_sent_reads_as_a_command(served: OpenAiServer, method: str) -> None:
    simulator = completions(served, method=method)
    commands = ("<|endoftext|>", "<s>", "<｜end▁of▁sentence｜>", "<tool_call>", "[TOOL_CALLS]")
    tokens = ["<|endof", "text|>", "<", "s>", *commands[2:]]
    (result,) = await simulate(simulator, tokens, explanation="the token '<|endoftext|>'")
    assert list(result.tokens) == tokens
    bodies = [str(body) for body in served.traffic.bodies]
    assert any("the token '< |endoftext|>'" in body for body in bodies)
    assert [each for each in commands if any(each in body for body in bodies)] == []
    await simulator.close()


def at_all(result: SimulatedSequence, reason: str) -> None:
    assert reasons(result) == dict.fromkeys(range(len(result.tokens)), reason)
    assert result.report.coverage == 0
    with pytest.raises(FailedPrecondition):
        result.report.require(0.9)


def of_logprobs(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def tampered(content: dict[str, Any]) -> dict[str, Any]:
        change(content["choices"][0]["logprobs"])
        return content

    return tampered


def another_text(logprobs: dict[str, Any]) -> None:
    logprobs["tokens"] = [token.replace("the", "teh") for token in logprobs["tokens"]]


def one_token_more(logprobs: dict[str, Any]) -> None:
    logprobs["tokens"].insert(-3, "x")
    logprobs["top_logprobs"].insert(-3, {"0": -0.1})


def shifted(logprobs: dict[str, Any]) -> None:
    logprobs["top_logprobs"].pop()


def too_likely(logprobs: dict[str, Any]) -> None:
    for top in logprobs["top_logprobs"][1:]:
        top.update({"5": 3.0})


def null(logprobs: dict[str, Any]) -> None:
    logprobs["top_logprobs"] = [None for _ in logprobs["tokens"]]


def nothing_likely(logprobs: dict[str, Any]) -> None:
    logprobs["top_logprobs"] = [{"the": -0.1} for _ in logprobs["tokens"]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (another_text, OTHER_TEXT),
        (one_token_more, OTHER_TEXT),
        (shifted, "the server's answer has not as many log probabilities as tokens"),
        (too_likely, NOT_A_LOGPROB),
        (null, NO_LOGPROBS),
        (nothing_likely, NO_VALUE),
    ],
)
async def test_lies_are_no_numbers(
    served: OpenAiServer, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    simulator = completions(served)
    await simulate(simulator, ["a"])
    served.tamper = of_logprobs(change)
    (result,) = await simulate(simulator, ["And", " the"])
    at_all(result, reason)
    assert result.cost.calls == 1
    await simulator.close()


@pytest.mark.parametrize("fault", ["garbage", "endless"])
async def test_what_is_not_json_is_no_number(served: OpenAiServer, fault: str) -> None:
    simulator = completions(served, max_attempts=2, max_answer_bytes=500_000)
    await simulate(simulator, ["a"])
    served.fault = fault
    (result,) = await simulate(simulator, ["And", " the"])
    assert result.report.malformed == 2
    served.fault = None
    (result,) = await simulate(simulator, ["And", " the"])
    assert not result.issues
    await simulator.close()


async def test_nan_is_no_number(served: OpenAiServer) -> None:
    simulator = completions(served, max_attempts=1)
    await simulate(simulator, ["a"])
    served.tamper = of_logprobs(
        lambda logprobs: logprobs["top_logprobs"][-4].update({"1": math.nan})
    )
    (result,) = await simulate(simulator, ["And", " the"])
    at_all(result, "the server's answer is not JSON")
    await simulator.close()


@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        ("500", Unavailable, "LANGUAGE_MODEL_SERVER_FAILS"),
        ("429", ResourceExhausted, "LANGUAGE_MODEL_QUOTA"),
        ("cut", Unavailable, "LANGUAGE_MODEL_SERVER_UNREACHABLE"),
        ("401", FailedPrecondition, "LANGUAGE_MODEL_KEY_REFUSED"),
    ],
)
async def test_failures_are_errors(
    served: OpenAiServer, fault: str, error: type[NeuropilError], reason: str
) -> None:
    simulator = completions(served, max_attempts=2)
    served.faults.extend([None] * 3)
    served.fault = fault
    with pytest.raises(error) as caught:
        await simulate(simulator, TOKENS, TOKENS)
    assert caught.value.reason == reason
    await simulator.close()


async def test_faults_here_and_there_change_nothing(served: OpenAiServer) -> None:
    simulator = completions(served)
    sequences = [TOKENS[:length] for length in range(1, 11)]
    expected = await simulate(simulator, *sequences)
    served.faults.extend(["500", None, "cut", "429", None, "garbage", "503", None, "cut"])
    results = await simulate(simulator, *sequences)
    for before, after in zip(expected, results, strict=True):
        assert after.tokens == before.tokens
        assert not after.issues
        assert after.probabilities == pytest.approx(before.probabilities)
    await simulator.close()


async def test_a_deadline_holds(served: OpenAiServer) -> None:
    simulator = completions(served)
    await simulate(simulator, ["a"])
    served.fault = "500"

    async def call() -> None:
        enter_deadline(0.3)
        async with asyncio.timeout(5):
            await simulate(simulator, TOKENS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pauses, "FIRST_WAIT_SECONDS", 0.1)
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await asyncio.create_task(call())
    await simulator.close()


async def test_leaving_cancels_what_is_under_way(served: OpenAiServer) -> None:
    simulator = completions(served, max_concurrent=2)
    await simulate(simulator, ["a"])
    before = served.traffic.requests
    served.delay = 0.02
    results = simulator.simulate(EXPLANATION, [TOKENS] * 50)
    async with aclosing(results):
        async for result in results:
            assert not result.issues
            break
    assert served.traffic.requests - before <= 5
    assert served.traffic.most_running <= 2
    await simulator.close()


async def test_a_server_that_forgets_how_to_echo(served: OpenAiServer) -> None:
    simulator = completions(served)
    await simulate(simulator, ["a"])
    served.abilities.echo = served.abilities.prompt_logprobs = False
    with pytest.raises(FailedPrecondition) as caught:
        await simulate(simulator, ["a"])
    assert caught.value.reason == "LANGUAGE_MODEL_SERVER_REFUSES"
    (result,) = await simulate(simulator, ["a"])
    assert not result.issues
    assert "tokens are simulated one at a time" in simulator.capabilities
    await simulator.close()


async def test_methods_that_a_server_cannot_do(served: OpenAiServer) -> None:
    served.abilities.echo = served.abilities.prompt_logprobs = False
    simulator = completions(served, method="all_at_once")
    with pytest.raises(FailedPrecondition) as caught:
        await simulate(simulator, ["a"])
    assert caught.value.reason == "NO_LOG_PROBABILITIES"
    await simulator.close()
    model = simulator.language_model
    with pytest.raises(ConfigurationError, match="chat-1 is a prompt for the method chat"):
        CompletionsSimulator("far", model, prompt="chat-1")
    with pytest.raises(ConfigurationError, match="one_at_a_time-1 is a prompt for"):
        CompletionsSimulator("far", model, method="all_at_once", prompt="one_at_a_time-1")
    with pytest.raises(ConfigurationError, match="there is no prompt 'few'"):
        CompletionsSimulator("far", model, prompt="few")


async def test_choices_as_a_local_model(served: OpenAiServer) -> None:
    prompts = [Prompt((Message("system", f"{word}\t"),), ()) for word in ("the", "Lord")]
    near = LocalLanguageModel(str(MODEL), "cpu")
    far = RemoteLanguageModel(Server(served.base_url, "demo"), "completions")
    expected = await near.choose(prompts, ["0", "1"])
    for one, other in zip(expected, await far.choose(prompts, ["0", "1"]), strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)
    await near.close()
    await far.close()


async def test_slow_is_not_wrong(served: OpenAiServer) -> None:
    simulator = completions(served)
    (expected,) = await simulate(simulator, TOKENS)
    served.delay = 0.2
    began = time.monotonic()
    (result,) = await simulate(simulator, TOKENS)
    assert time.monotonic() - began >= 0.2
    assert result.probabilities == pytest.approx(expected.probabilities)
    await simulator.close()
