"""What every language model can be asked, wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from services.simulation.simulators.interface import SimulationCost

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation; a model without a chat template reads the contents in a row."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model reads: first what many prompts share, which it may compute only once."""

    shared: tuple[Message, ...]
    """The same for all prompts of one kind: instructions and examples."""
    own: tuple[Message, ...]
    """The rest, which ends where the answer begins."""

    @property
    def messages(self) -> tuple[Message, ...]:
        return self.shared + self.own


@dataclass(frozen=True, slots=True)
class Choice:
    """How probable each of the offered choices is as what comes next.

    `probabilities` [choices] add up to 1; None where the model's answer can't be read or holds none
    of the choices, with the reason in `issue`.
    """

    probabilities: NDArray[np.float64] | None
    issue: str = ""
    cost: SimulationCost = field(default_factory=SimulationCost)


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How a text is generated."""

    max_tokens: int
    temperature: float = 0.0
    """0 takes the most probable token each time."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None
    """Where the model's server can be held to one, the answer follows it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A generated text; `finished` is False where the limit of tokens cut it off."""

    text: str
    finished: bool = True
    cost: SimulationCost = field(default_factory=SimulationCost)


class LanguageModel(Protocol):
    """A language model. Calls may run at the same time; each is bounded by its caller's deadline.

    Methods raise Unavailable where the model can't be loaded or its server can't be reached in
    time, ResourceExhausted where a prompt is longer than the model reads or the server's quota is
    used up, FailedPrecondition where the model can't do what is asked. A server's wrong answer to
    one prompt is never a number: it is a `Choice` with an issue, or an error.
    """

    @property
    def version(self) -> str:
        """Name and version of the model."""
        ...

    @property
    def state(self) -> str:
        """`loading`, `ready` or `failed: why`."""
        ...

    async def choose(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> Sequence[Choice]:
        """For each prompt, how probable the choices are as what comes next."""
        ...

    async def generate(
        self, prompts: Sequence[Prompt], options: GenerationOptions
    ) -> Sequence[Generation]:
        """A text for each prompt."""
        ...
