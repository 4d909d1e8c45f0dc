"""The chat simulator: a chat model that tells no probabilities answers a number a token, as JSON.

Its distributions are made from one number a token, so they say nothing about how sure it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from math import ceil
from typing import ClassVar

from services.simulation.language_models.interface import GenerationOptions
from services.simulation.language_models.remote.commands import without_commands
from services.simulation.language_models.remote.model import RemoteLanguageModel
from services.simulation.language_models.remote.ordered import in_order
from services.simulation.parsing.structured_answers import read_structured_answer
from services.simulation.prompts.simulation import PROMPTS, ChatPrompt, simulation_prompt
from services.simulation.simulators.interface import (
    SimulatedSequence,
    check_explanations,
    check_request,
)
from services.simulation.simulators.server_windows import numbered, simulate_in_windows

_ANSWER_TOKENS = 64
_ANSWER_TOKENS_PER_TOKEN = 24
"""An item is about 15 tokens, and one of odd signs more; what isn't needed isn't paid."""
_MOST_TOKENS = 160
"""Of a window: an answer of 4,096 tokens at most, which about every model writes."""


class ChatSimulator:
    """Asks a chat model for a whole number from 0 to 10 a token."""

    kind: ClassVar[str] = "chat"
    has_exact_probabilities: ClassVar[bool] = False
    description: ClassVar[str] = (
        "Asks a chat model behind an OpenAI-compatible server for a number a token; tells no "
        "probabilities."
    )

    def __init__(
        self, name: str, language_model: RemoteLanguageModel, *, prompt: str | None = None
    ) -> None:
        """Raise ConfigurationError where there is no such prompt, or it is for another method."""
        self.name = name
        self.model = language_model.version
        self.language_model = language_model
        self._prompt = simulation_prompt(prompt or PROMPTS["chat"][0], ChatPrompt)
        self.prompt_version = self._prompt.version

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What was found out about the server."""
        return self.language_model.capabilities

    @property
    def state(self) -> str:
        """As `Simulator.state`."""
        return self.language_model.state

    def start(self) -> None:
        """Find out, in the background, what the server can do."""
        self.language_model.start()

    async def close(self) -> None:
        """End what is under way."""
        await self.language_model.close()

    async def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """One result a sequence, in order; see `Simulator.simulate`."""
        check_request(explanation, sequences)
        await self.language_model.found()
        calls = [partial(self._sequence, explanation, tokens) for tokens in sequences]
        async with aclosing(self._in_order(calls)) as results:
            async for result in results:
                yield result

    async def simulate_explanations(
        self, explanations: Sequence[str], tokens: Sequence[str]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """As `Simulator.simulate_explanations`; several requests are under way at a time."""
        check_explanations(explanations, tokens)
        await self.language_model.found()
        calls = [
            partial(numbered, position, partial(self._sequence, explanation, tokens))
            for position, explanation in enumerate(explanations)
        ]
        async with aclosing(self._in_order(calls)) as results:
            async for result in results:
                yield result

    def _in_order(
        self, calls: Sequence[Callable[[], Awaitable[SimulatedSequence]]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        return in_order(calls, self.language_model.server.max_concurrent)

    async def _sequence(self, explanation: str, tokens: Sequence[str]) -> SimulatedSequence:
        # As the model reads them, and so as it has to repeat them.
        texts = [without_commands(token) for token in tokens]
        windows = ceil(len(texts) / _MOST_TOKENS)
        whole = await simulate_in_windows(
            texts, partial(self._window, explanation), ceil(len(texts) / windows)
        )
        return SimulatedSequence(tokens, whole.probabilities, whole.issues, whole.cost)

    async def _window(self, explanation: str, tokens: Sequence[str]) -> SimulatedSequence:
        options = GenerationOptions(
            max_tokens=_ANSWER_TOKENS + _ANSWER_TOKENS_PER_TOKEN * len(tokens),
            json_schema=self._prompt.answer_schema(len(tokens)),
        )
        prompt = self._prompt.prompt(explanation, tokens)
        (answer,) = await self.language_model.generate([prompt], options)
        probabilities, issues = read_structured_answer(
            answer.text, tokens, finished=answer.finished
        )
        return SimulatedSequence(tokens, probabilities, issues, answer.cost)
