"""What is asked of /chat/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from services.simulation.language_models.interface import (
    Generation,
    GenerationOptions,
    Message,
)
from services.simulation.language_models.remote.answers import (
    ChatAnswer,
    cost_of,
    next_token_logprobs,
    read_answer,
)
from services.simulation.language_models.remote.client import ServerClient
from services.simulation.simulators.interface import SimulationCost

ROUTE = "chat/completions"

Structure = Literal["json_schema", "json_object", "none"]
"""What a server can hold an answer to."""


class ChatApi:
    """Requests to /chat/completions of one server."""

    def __init__(self, client: ServerClient) -> None:
        self._client = client
        self.limit_name = "max_tokens"
        """What the server calls the limit of an answer; newer models of OpenAI's call it
        max_completion_tokens."""
        self.takes_temperature = True
        """Whether the server lets a request say one; reasoning models don't."""

    async def next_token(
        self, messages: Sequence[Message], logprobs: int, *, max_attempts: int | None = None
    ) -> tuple[dict[str, float] | None, SimulationCost]:
        """Likely first tokens of the answer; None where the server tells none."""
        body = {"max_tokens": 1, "logprobs": True, "top_logprobs": logprobs, "temperature": 1.0}
        answer, seconds = await self._ask(messages, body, max_attempts)
        return next_token_logprobs(answer.choices[0].logprobs), cost_of(answer.usage, seconds)

    async def generate(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        structure: Structure,
        *,
        max_attempts: int | None = None,
    ) -> Generation:
        """The model's answer, held to a schema as far as `structure` allows."""
        body: dict[str, Any] = {
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "seed": options.seed,
        }
        if options.stop:
            body["stop"] = list(options.stop)
        if options.json_schema is not None and structure == "json_schema":
            schema = {"name": "answer", "strict": True, "schema": options.json_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif options.json_schema is not None and structure == "json_object":
            body["response_format"] = {"type": "json_object"}
        answer, seconds = await self._ask(messages, body, max_attempts)
        choice = answer.choices[0]
        return Generation(
            choice.message.content or "",
            choice.finish_reason != "length",
            cost_of(answer.usage, seconds),
        )

    async def _ask(
        self, messages: Sequence[Message], options: dict[str, Any], max_attempts: int | None
    ) -> tuple[ChatAnswer, float]:
        began = time.perf_counter()
        server = self._client.server
        turns = [{"role": message.role, "content": message.content} for message in messages]
        body = {"model": server.model, "messages": turns, **options}
        body[self.limit_name] = body.pop("max_tokens")
        if not self.takes_temperature:
            del body["temperature"]
        content = await self._client.post(ROUTE, body, max_attempts=max_attempts)
        return read_answer(content, ChatAnswer, server), time.perf_counter() - began
