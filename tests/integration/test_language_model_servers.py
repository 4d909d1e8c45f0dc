"""The client of OpenAI-compatible servers against one on a socket: faults, limits, secrets."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from services.simulation.language_models.remote import pauses
from services.simulation.language_models.remote.client import ServerClient
from services.simulation.language_models.remote.failures import UnreadableAnswer
from services.simulation.language_models.remote.server import ApiKey, Server
from shared.errors import (
    ConfigurationError,
    FailedPrecondition,
    NeuropilError,
    ResourceExhausted,
    Unavailable,
)
from shared.rpc.context import enter_deadline
from tests.emulators.openai_server import OpenAiServer
from tests.emulators.word_model import WordModel

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
    # On a busy machine not even the connection may be there in time.
    assert served.traffic.requests <= 2


async def test_no_server() -> None:
    raised = await fail(ServerClient(Server("http://127.0.0.1:9/v1", "words", max_attempts=1)))
    assert isinstance(raised, Unavailable)
    assert "can't be reached" in raised.message


async def test_calls_under_way_are_bounded(served: OpenAiServer) -> None:
    served.delay = 0.03
    client = ServerClient(described(served, max_concurrent=3))
    await asyncio.gather(*(client.post("completions", BODY) for _ in range(12)))
    await client.close()
    assert 1 < served.traffic.most_running <= 3


@pytest.mark.parametrize("status", ["429", "503"])
async def test_retry_after_holds_back_all_calls(served: OpenAiServer, status: str) -> None:
    served.faults.append(status)
    served.retry_after = "0.4"
    client = ServerClient(described(served, max_concurrent=2))
    await asyncio.gather(*(client.post("completions", BODY) for _ in range(6)))
    await client.close()
    first, *later = served.traffic.times
    # Few more were under way when the server said so.
    assert sum(moment - first < 0.4 for moment in later) <= 2
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


async def test_a_server_that_asks_for_years_is_asked_again_after_a_while(
    served: OpenAiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "LONGEST_PAUSE_SECONDS", 0.2)
    served.faults.append("429")
    served.retry_after = "Fri, 31 Dec 9999 23:59:59 GMT"
    client = ServerClient(described(served))
    with pytest.raises(NeuropilError) as caught:
        await client.post("completions", BODY)
    assert (caught.value.retry_after_seconds or 0) > 1e9, "what the server says"
    await client.post("completions", BODY)
    await client.close()
    assert served.traffic.requests == 2


def test_retry_after_forms() -> None:
    assert pauses.retry_after({"retry-after": "3"}) == 3
    assert pauses.retry_after({"retry-after-ms": "250", "retry-after": "3"}) == 0.25
    assert pauses.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    for text in (
        "",
        "soon",
        "-3",
        "nan",
        "inf",
        "Mon, 01 Jan 2026 00:00:00 +99999999999999",
    ):
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
