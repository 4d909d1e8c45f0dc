"""The client of OpenAI-compatible servers against one on a socket: faults, limits, secrets."""

from __future__ import annotations

import asyncio
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from services.simulation.language_models.interface import (
    GenerationOptions,
    Message,
    Prompt,
)
from services.simulation.language_models.remote import pauses
from services.simulation.language_models.remote.client import ServerClient
from services.simulation.language_models.remote.failures import UnreadableAnswer
from services.simulation.language_models.remote.model import RemoteLanguageModel
from services.simulation.language_models.remote.server import ApiKey, Server
from services.simulation.simulators.completions import CompletionsSimulator
from shared.errors import (
    ConfigurationError,
    FailedPrecondition,
    NeuropilError,
    ResourceExhausted,
    Unavailable,
)
from shared.rpc.context import enter_deadline
from tests.emulators.openai_server import OpenAiServer
from tests.emulators.word_model import AFTER_ONE, VALUES, WordModel

KEY = "sk-secret-0123456789"
BODY = {"prompt": "a", "max_tokens": 1, "logprobs": 5}


@pytest.fixture(scope="module")
def running() -> Iterator[OpenAiServer]:
    with OpenAiServer(WordModel()) as server:
        yield server


@pytest.fixture
def served(running: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> OpenAiServer:
    running.reset()
    running.key = None
    monkeypatch.setattr(pauses, "FIRST_WAIT_SECONDS", 0.004)
    return running


def described(served: OpenAiServer, **options: Any) -> Server:
    return replace(Server(served.base_url, "words", timeout_seconds=5), **options)


async def fail(client: ServerClient) -> NeuropilError:
    try:
        with pytest.raises(NeuropilError) as caught:
            await client.post("completions", BODY)
    finally:
        await client.close()
    return caught.value


@pytest.mark.parametrize("fault", ["500", "502", "503", "429", "408", "cut", "garbage"])
async def test_what_passes_is_tried_again(served: OpenAiServer, fault: str) -> None:
    served.faults.extend([fault, fault])
    client = ServerClient(described(served))
    assert b"choices" in await client.post("completions", BODY)
    await client.close()
    assert served.traffic.requests == 3


@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        ("500", Unavailable, "LANGUAGE_MODEL_SERVER_FAILS"),
        ("503", Unavailable, "LANGUAGE_MODEL_SERVER_FAILS"),
        ("cut", Unavailable, "LANGUAGE_MODEL_SERVER_UNREACHABLE"),
        ("garbage", UnreadableAnswer, "LANGUAGE_MODEL_ANSWER_UNREADABLE"),
        ("429", ResourceExhausted, "LANGUAGE_MODEL_QUOTA"),
    ],
)
async def test_what_does_not_pass_ends(
    served: OpenAiServer, fault: str, error: type[NeuropilError], reason: str
) -> None:
    served.fault = fault
    raised = await fail(ServerClient(described(served, max_attempts=3)))
    assert isinstance(raised, error)
    assert raised.reason == reason
    assert served.traffic.requests == 3


@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        ("400", FailedPrecondition, "LANGUAGE_MODEL_SERVER_REFUSES"),
        ("404", FailedPrecondition, "LANGUAGE_MODEL_SERVER_REFUSES"),
        ("501", FailedPrecondition, "LANGUAGE_MODEL_SERVER_REFUSES"),
        ("401", FailedPrecondition, "LANGUAGE_MODEL_KEY_REFUSED"),
        ("403", FailedPrecondition, "LANGUAGE_MODEL_KEY_REFUSED"),
        ("413", ResourceExhausted, "PROMPT_TOO_LONG"),
        ("quota", ResourceExhausted, "LANGUAGE_MODEL_QUOTA"),
        ("redirect", FailedPrecondition, "LANGUAGE_MODEL_SERVER_REDIRECTS"),
    ],
)
async def test_refusals_are_not_tried_again(
    served: OpenAiServer, fault: str, error: type[NeuropilError], reason: str
) -> None:
    served.fault = fault
    raised = await fail(ServerClient(described(served)))
    assert isinstance(raised, error)
    assert raised.reason == reason
    assert served.traffic.requests == 1


async def test_answers_are_bounded(served: OpenAiServer) -> None:
    served.fault = "endless"
    raised = await fail(ServerClient(described(served, max_answer_bytes=1_000_000)))
    assert raised.reason == "LANGUAGE_MODEL_ANSWER_UNREADABLE"
    assert "1000000 bytes" in raised.message


async def test_a_slow_server_is_given_up(served: OpenAiServer) -> None:
    served.fault = "hangs"
    raised = await fail(ServerClient(described(served, timeout_seconds=0.2, max_attempts=2)))
    assert raised.reason == "LANGUAGE_MODEL_SERVER_UNREACHABLE"
    assert "did not answer within" in raised.message
    assert served.traffic.requests == 2


async def test_no_server() -> None:
    raised = await fail(ServerClient(Server("http://127.0.0.1:9/v1", "words", max_attempts=1)))
    assert isinstance(raised, Unavailable)
    assert "can't be reached" in raised.message


async def test_calls_under_way_are_bounded(served: OpenAiServer) -> None:
    served.delay = 0.01
    client = ServerClient(described(served, max_concurrent=3))
    await asyncio.gather(*(client.post("completions", BODY) for _ in range(12)))
    await client.close()
    assert served.traffic.most_running == 3


@pytest.mark.parametrize("status", ["429", "503"])
async def test_retry_after_holds_back_all_calls(served: OpenAiServer, status: str) -> None:
    served.faults.append(status)
    served.retry_after = "0.4"
    client = ServerClient(described(served, max_concurrent=2))
    await asyncio.gather(*(client.post("completions", BODY) for _ in range(6)))
    await client.close()
    first, *later = served.traffic.times
    # One more at most was under way when the server said so.
    assert sum(moment - first < 0.4 for moment in later) <= 1
    assert served.traffic.requests == 7


async def test_a_wait_beyond_the_deadline_is_not_begun(served: OpenAiServer) -> None:
    served.fault = "429"
    served.retry_after = "30"
    client = ServerClient(described(served))
    began = time.monotonic()

    async def call() -> NeuropilError:
        enter_deadline(5)
        with pytest.raises(NeuropilError) as caught:
            await client.post("completions", BODY)
        return caught.value

    first = await asyncio.create_task(call())
    assert first.reason == "LANGUAGE_MODEL_QUOTA"
    assert first.retry_after_seconds == pytest.approx(30)
    # The others don't even ask.
    second = await asyncio.create_task(call())
    assert second.reason == "LANGUAGE_MODEL_SERVER_BUSY"
    assert second.retry_after_seconds == pytest.approx(30, abs=5)
    await client.close()
    assert time.monotonic() - began < 5
    assert served.traffic.requests == 1


def test_retry_after_forms() -> None:
    assert pauses.retry_after({"retry-after": "3"}) == 3
    assert pauses.retry_after({"retry-after-ms": "250", "retry-after": "3"}) == 0.25
    assert pauses.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    for text in ("", "soon", "-3", "nan", "inf"):
        assert pauses.retry_after({"retry-after": text}) is None


async def test_the_key_stays_secret(served: OpenAiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", KEY)
    served.key = KEY
    key = ApiKey.from_environment("SECRET_KEY", "simulators[0].api_key_env")
    server = described(served, key=key)
    client = ServerClient(server)
    with structlog.testing.capture_logs() as logs:
        served.faults.append("500")
        await client.post("completions", BODY)
        assert served.traffic.keys == {f"Bearer {KEY}"}
        served.key = "another"
        refused = await fail(client)
    assert "SECRET_KEY" in refused.message
    assert logs
    for text in (repr(key), str(key), repr(server), repr(client), repr(logs), repr(vars(refused))):
        assert KEY not in text
    # A server that repeats the key in an error of another kind.
    assert key.scrub(f"wrong: {KEY}!") == "wrong: [key]!"


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigurationError, match=r"simulators\[0\].*NO_SUCH_KEY"):
        ApiKey.from_environment("NO_SUCH_KEY", "simulators[0].api_key_env")
    monkeypatch.setenv("NO_SUCH_KEY", "two\nlines")
    with pytest.raises(ConfigurationError) as caught:
        ApiKey.from_environment("NO_SUCH_KEY", "simulators[0].api_key_env")
    assert "two" not in str(caught.value)
    assert ApiKey.from_environment(None, "").headers == {}


@pytest.mark.parametrize("url", ["http://", "http:///v1", "http://host:x/v1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigurationError, match="address of a server"):
        Server(url, "m")


@pytest.mark.parametrize("url", ["http://me:pw@host/v1", "http://host/v1?key=pw"])
def test_addresses_hold_no_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Server(url, "m")
    assert "pw" not in str(caught.value)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    files = (tmp_path / "cert.pem", tmp_path / "key.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1"
    extra = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(files[0])]
    extra += ["-keyout", str(files[1])]
    subprocess.run([*command.split(), *extra], check=True, capture_output=True)
    return files


async def test_certificates_are_checked(certificate: tuple[Path, Path]) -> None:
    with OpenAiServer(WordModel(), tls=certificate) as server:
        raised = await fail(ServerClient(Server(server.base_url, "m")))
        assert raised.reason == "LANGUAGE_MODEL_SERVER_CERTIFICATE"
        assert server.traffic.requests == 0


async def test_cancelling_ends_the_request(served: OpenAiServer) -> None:
    served.fault = "hangs"
    client = ServerClient(described(served))
    call = asyncio.create_task(client.post("completions", BODY))
    await until(lambda: served.traffic.running == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: served.traffic.running == 0)
    await client.close()


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
    await simulator.close()
