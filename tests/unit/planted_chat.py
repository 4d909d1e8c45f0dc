"""A chat server on a socket whose answers are planted, and the simulator that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from services.simulation.language_models.remote.model import RemoteLanguageModel
from services.simulation.language_models.remote.server import Server
from services.simulation.simulators.chat import ChatSimulator
from tests.emulators.openai_server import Abilities, OpenAiServer


class PlantedAnswers:
    """Answers by what is asked: a text, or log probabilities of the next token."""

    def __init__(self) -> None:
        self.text: Callable[[str, int], str] = lambda asked, seed: "fine"
        """From the last message and the seed."""
        self.yes: Callable[[str], float | None] = lambda asked: 0.5
        """Probability of "1"; None answers something else than "1" or "0"."""
        self.asked: list[dict[str, Any]] = []

    def completion(self, body: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
        raise AssertionError("only chat is asked")

    def chat(self, body: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
        last = body["messages"][-1]["content"]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if "JSON object" not in last:
            self.asked.append(body)
        if body.get("logprobs"):
            probability = 0.5 if "JSON object" in last else self.yes(last)
            top = (
                [("maybe", 1.0)]
                if probability is None
                else [("1", probability), ("0", 1 - probability)]
            )
            listed = [
                {"token": token, "logprob": _log(share), "bytes": None} for token, share in top
            ]
            choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
            said = top[0][0]
        else:
            said = self.text(last, body.get("seed", 0))
        if said.endswith("[cut]"):
            said, choice["finish_reason"] = said.removesuffix("[cut]"), "length"
        choice["message"] = {"role": "assistant", "content": said}
        usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
        return {"object": "chat.completion", "choices": [choice], "usage": usage}


def _log(probability: float) -> float:
    import math

    return math.log(max(probability, 1e-30))


@asynccontextmanager
async def chat_simulator(
    answers: PlantedAnswers,
) -> AsyncIterator[tuple[ChatSimulator, OpenAiServer]]:
    """A simulator that asks a server with these answers."""
    with OpenAiServer(answers) as server:
        model = RemoteLanguageModel(Server(server.base_url, "planted", max_attempts=2), "chat")
        simulator = ChatSimulator("chat", model)
        try:
            yield simulator, server
        finally:
            await simulator.close()
            await model.close()
