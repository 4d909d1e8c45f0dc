"""What is asked of /completions, by the ways that servers have for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.simulation.language_models.interface import (
    Generation,
    GenerationOptions,
    Message,
)
from services.simulation.language_models.remote.answers import (
    CompletionAnswer,
    cost_of,
    echoed_tokens,
    next_token_logprobs,
    prompt_tokens,
    read_answer,
)
from services.simulation.language_models.remote.client import ServerClient
from services.simulation.parsing.echoed_prompts import EchoedToken, token_starts
from services.simulation.parsing.value_logprobs import Unreadable
from services.simulation.simulators.interface import SimulationCost

ROUTE = "completions"


@dataclass(frozen=True, slots=True)
class EchoWay:
    """How a server tells the log probabilities of a prompt's own tokens."""

    logprobs: int
    """How many likely tokens it lists a position."""
    max_tokens: int = 0
    """0 where it can do without generating a token."""
    prompt_logprobs: bool = False
    """vLLM's own field, in place of OpenAI's `echo`."""

    @property
    def body(self) -> dict[str, Any]:
        """Its fields of a request."""
        if self.prompt_logprobs:
            return {"max_tokens": self.max_tokens, "prompt_logprobs": self.logprobs}
        return {"max_tokens": self.max_tokens, "echo": True, "logprobs": self.logprobs}

    def __str__(self) -> str:
        name = "prompt_logprobs" if self.prompt_logprobs else "echo with logprobs"
        return f"{name}, {self.logprobs} tokens a position"


class CompletionsApi:
    """Requests to /completions of one server."""

    def __init__(self, client: ServerClient) -> None:
        self._client = client

    async def echoed(
        self, prompt: str, way: EchoWay, *, max_attempts: int | None = None
    ) -> tuple[list[EchoedToken], SimulationCost]:
        """The prompt's tokens with what was likely in the place of each.

        Raises:
            UnreadableAnswer: the answer has another shape, or other tokens than the prompt's.
            NeuropilError: as `ServerClient.post` says.
        """
        answer, seconds = await self._ask(prompt, way.body, max_attempts)
        choice, server = answer.choices[0], self._client.server
        if way.prompt_logprobs:
            listed = choice.prompt_logprobs or answer.prompt_logprobs
            tokens = prompt_tokens(listed, prompt, server)
        else:
            tokens = echoed_tokens(choice.logprobs, server)
        cost = cost_of(answer.usage, seconds, prompt_tokens=len(tokens))
        generated = 0 if way.prompt_logprobs else way.max_tokens
        return _without_generated(prompt, tokens, generated), cost

    async def next_token(
        self, prompt: str, logprobs: int, *, max_attempts: int | None = None
    ) -> tuple[dict[str, float] | None, SimulationCost]:
        """Likely next tokens with their log probabilities; None where the answer has none."""
        body = {"max_tokens": 1, "logprobs": logprobs}
        answer, seconds = await self._ask(prompt, body, max_attempts)
        return next_token_logprobs(answer.choices[0].logprobs), cost_of(answer.usage, seconds)

    async def tokens_of(self, prompt: str) -> int | None:
        """How many tokens the prompt has, as the server counts; None where it doesn't."""
        answer, _ = await self._ask(prompt, {"max_tokens": 1}, None)
        return answer.usage.prompt_tokens if answer.usage else None

    async def generate(self, messages: Sequence[Message], options: GenerationOptions) -> Generation:
        """The text that goes on after the messages, which are read in a row."""
        body: dict[str, Any] = {
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "seed": options.seed,
        }
        if options.stop:
            body["stop"] = list(options.stop)
        answer, seconds = await self._ask(in_a_row(messages), body, None)
        choice = answer.choices[0]
        return Generation(
            choice.text, choice.finish_reason != "length", cost_of(answer.usage, seconds)
        )

    async def _ask(
        self, prompt: str, options: dict[str, Any], max_attempts: int | None
    ) -> tuple[CompletionAnswer, float]:
        began = time.perf_counter()
        server = self._client.server
        # What is told are a model's own probabilities only where nothing shapes them.
        body = {"model": server.model, "prompt": prompt, "temperature": 1.0, **options}
        content = await self._client.post(ROUTE, body, max_attempts=max_attempts)
        return read_answer(content, CompletionAnswer, server), time.perf_counter() - began


def in_a_row(messages: Sequence[Message]) -> str:
    """The text of a conversation for a model without turns."""
    return "".join(message.content for message in messages)


def _without_generated(prompt: str, tokens: list[EchoedToken], generated: int) -> list[EchoedToken]:
    for count in range(min(generated, len(tokens)) + 1):
        kept = tokens[: len(tokens) - count]
        try:
            token_starts(prompt, [token.text for token in kept])
        except Unreadable:
            continue
        return kept
    # Whoever reads them finds out that they aren't the prompt's.
    return tokens
