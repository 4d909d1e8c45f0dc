"""Which prompt is taken for a server, by how much its model reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from services.simulation.language_models.remote.model import RemoteLanguageModel
from services.simulation.language_models.remote.server import Server
from services.simulation.prompts.simulation import logprob_prompt
from services.simulation.simulators.completions import CompletionsSimulator
from tests.emulators.openai_server import OpenAiServer
from tests.emulators.refusal import Refused

_PIECE = re.compile(r"[\t\n]|\d+|[^\t\n\d]+")


class Narrow:
    """Answers the same everywhere, to prompts of no more than `limit` pieces."""

    limit = 0

    def completion(self, body: dict[str, Any], abilities: Any) -> dict[str, Any]:
        pieces = _PIECE.findall(body["prompt"])
        if len(pieces) > self.limit:
            raise Refused(400, "the maximum context length is exceeded", "context_length_exceeded")
        likely = {"0": -0.1, "7": -2.4}
        top = [None, *[likely] * (len(pieces) - 1)] if body.get("echo") else [likely]
        tokens = pieces if body.get("echo") else ["x"]
        return {
            "choices": [
                {"text": "".join(tokens), "logprobs": {"tokens": tokens, "top_logprobs": top}}
            ],
            "usage": {"prompt_tokens": len(pieces)},
        }

    def chat(self, body: dict[str, Any], abilities: Any) -> dict[str, Any]:
        raise AssertionError("nothing is said")


@pytest.fixture
def served() -> Iterator[tuple[OpenAiServer, Narrow]]:
    model = Narrow()
    with OpenAiServer(model) as server:
        yield server, model


@pytest.mark.parametrize(
    ("fits", "more", "taken"),
    [
        ("few_shot-1", 400, "few_shot-1"),
        ("few_shot-1", 8, "compact-1"),
        ("compact-1", 8, "compact-1"),
    ],
)
async def test_a_prompt_leaves_room_for_a_sequence(
    fits: str, more: int, taken: str, served: tuple[OpenAiServer, Narrow]
) -> None:
    server, model = served
    text = logprob_prompt(fits, "all_at_once").text("a", ["a"]).text
    model.limit = len(_PIECE.findall(text)) + more
    language_model = RemoteLanguageModel(Server(server.base_url, "narrow"), "completions")
    simulator = CompletionsSimulator("far", language_model)
    (result,) = [each async for each in simulator.simulate("names", [[" x"] * 32])]
    assert not result.issues
    assert simulator.prompt_version.startswith(f"{taken}+")
    assert (result.cost.calls == 1) == (fits == "few_shot-1")
    await simulator.close()
