"""A language model behind a server: what it can do is found out before it is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import structlog

from services.simulation.language_models.interface import (
    Choice,
    Generation,
    GenerationOptions,
    Message,
    Prompt,
)
from services.simulation.language_models.remote.capabilities import (
    Capabilities,
    chat_capabilities,
    completions_capabilities,
)
from services.simulation.language_models.remote.chat_api import ChatApi
from services.simulation.language_models.remote.client import ServerClient
from services.simulation.language_models.remote.commands import harmless
from services.simulation.language_models.remote.completions_api import CompletionsApi, in_a_row
from services.simulation.language_models.remote.failures import RequestRefused, UnreadableAnswer
from services.simulation.language_models.remote.ordered import in_order
from services.simulation.language_models.remote.server import Server
from services.simulation.parsing.choice_logprobs import answered_choice, choice_probabilities
from services.simulation.parsing.structured_answers import CUT_OFF
from services.simulation.parsing.value_logprobs import Unreadable
from services.simulation.simulators.interface import SimulationCost
from shared.errors import NeuropilError

_log = structlog.get_logger(__name__)

Api = Literal["completions", "chat"]

_ASK_AGAIN_SECONDS = 2.0
_ASK_AGAIN_SECONDS_AT_MOST = 60.0
_FAILURE_HOLDS_SECONDS = 1.0
"""So long a server that wasn't there is not asked again by calls that wait."""
_CHOICE_TOKENS = 16
NO_LOGPROBS = "the server gave no log probabilities"

ResultT = TypeVar("ResultT")


class RemoteLanguageModel:
    """One model of an OpenAI-compatible server, by /completions or by /chat/completions."""

    def __init__(self, server: Server, api: Api) -> None:
        self.server = server
        self.api = api
        self._client = ServerClient(server)
        self.completions = CompletionsApi(self._client)
        self.chat = ChatApi(self._client)
        self._found: Capabilities | None = None
        self._failure: NeuropilError | None = None
        self._failed_at = 0.0
        self._asking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def version(self) -> str:
        """Name of the model, and the server that it is of."""
        return f"{self.server.model} at {self.server.host}"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What was found out about the server; empty until it was."""
        return self._found.sentences if self._found is not None else ()

    @property
    def known(self) -> Capabilities | None:
        """What the server can do, where that is known already."""
        return self._found

    @property
    def state(self) -> str:
        """`loading`, `ready`, or `failed: ` and why."""
        if self._found is not None:
            return "ready"
        return f"failed: {self._failure.message}" if self._failure is not None else "loading"

    def start(self) -> None:
        """Find out what the server can do, in the background, and go on until it answers."""
        if self._task is None:
            self._task = asyncio.create_task(self._find_out())

    async def ready(self) -> None:
        """Return once the server answered what `start` asks it, or is no longer asked."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        """End what is under way, and the connections."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._client.close()

    async def found(self) -> Capabilities:
        """What the server can do; asks it where that is not known yet.

        Raises:
            Unavailable: the server can't be reached.
            FailedPrecondition: it refuses the key, or everything.
            ResourceExhausted: its quota is used up.
        """
        if self._found is not None:
            return self._found
        async with self._asking:
            if self._found is not None:
                return self._found
            held = time.monotonic() - self._failed_at < _FAILURE_HOLDS_SECONDS
            if self._failure is not None and held:
                raise self._failure
            try:
                if self.api == "chat":
                    self._found = await chat_capabilities(self.chat, self.server.logprobs)
                else:
                    self._found = await completions_capabilities(
                        self.completions, self.server.logprobs
                    )
            except NeuropilError as error:
                self._failure, self._failed_at = error, time.monotonic()
                raise
            _log.info(
                "language_model_server_ready",
                server=self.server.host,
                model=self.server.model,
                api=self.api,
                capabilities=self._found.sentences,
            )
            return self._found

    def forget(self) -> None:
        """Ask anew at the next call: the server refused what it could do before."""
        self._found = None
        self._failure = None

    async def choose(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> Sequence[Choice]:
        """As `LanguageModel.choose`.

        With log probabilities a choice that is not among the likely tokens has probability 0; by
        a server without them all probability is on the choice that it answers.
        """
        found = await self.found()
        return await self._all(
            [partial(self._choose, found, harmless(prompt.messages), choices) for prompt in prompts]
        )

    async def generate(
        self, prompts: Sequence[Prompt], options: GenerationOptions
    ) -> Sequence[Generation]:
        """As `LanguageModel.generate`; the prompt at position i has the seed + i."""
        found = await self.found()
        return await self._all(
            [
                partial(
                    self._generate,
                    found,
                    harmless(prompt.messages),
                    replace(options, seed=options.seed + position),
                )
                for position, prompt in enumerate(prompts)
            ]
        )

    async def _choose(
        self, found: Capabilities, messages: Sequence[Message], choices: Sequence[str]
    ) -> Choice:
        cost = SimulationCost(calls=1)
        try:
            if not found.next_token_logprobs:
                schema = _schema_of(choices) if found.structure == "json_schema" else None
                options = GenerationOptions(max_tokens=_CHOICE_TOKENS, json_schema=schema)
                said = await self._generate(found, messages, options)
                cost = said.cost
                if self.api == "chat" and not said.finished:
                    raise Unreadable(CUT_OFF)
                return Choice(answered_choice(said.text, choices), cost=cost)
            if self.api == "chat":
                top, cost = await self.chat.next_token(messages, found.next_token_logprobs)
            else:
                top, cost = await self.completions.next_token(
                    in_a_row(messages), found.next_token_logprobs
                )
            if top is None:
                return Choice(None, NO_LOGPROBS, cost)
            any_spaces = self.api == "chat"
            return Choice(choice_probabilities(top, choices, any_spaces=any_spaces), cost=cost)
        except Unreadable as error:
            return Choice(None, str(error), cost)
        except UnreadableAnswer as error:
            return Choice(None, error.message, cost)

    async def _generate(
        self, found: Capabilities, messages: Sequence[Message], options: GenerationOptions
    ) -> Generation:
        if self.api == "chat":
            return await self.chat.generate(messages, options, found.structure)
        return await self.completions.generate(messages, options)

    async def _all(
        self, calls: Sequence[Callable[[], Coroutine[Any, Any, ResultT]]]
    ) -> list[ResultT]:
        try:
            async with aclosing(in_order(calls, self.server.max_concurrent)) as results:
                return [result async for result in results]
        except RequestRefused:
            # It may be another server by now: what it can do is found out at the next call.
            self.forget()
            raise

    async def _find_out(self) -> None:
        wait = _ASK_AGAIN_SECONDS
        while True:
            try:
                await self.found()
            except NeuropilError as error:
                _log.warning(
                    "language_model_server_not_ready",
                    server=self.server.host,
                    model=self.server.model,
                    problem=error.message,
                    next_seconds=wait,
                )
                await asyncio.sleep(wait)
                wait = min(2 * wait, _ASK_AGAIN_SECONDS_AT_MOST)
            else:
                return


def _schema_of(choices: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": list(choices)}},
        "required": ["answer"],
        "additionalProperties": False,
    }
