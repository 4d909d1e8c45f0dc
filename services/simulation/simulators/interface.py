"""What every simulator is: distributions a token, how far to trust them, and what they cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from services.simulation.errors import InvalidInput
from services.simulation.sequence_simulation import (
    NORMALIZED_VALUES,
    SequenceSimulation,
)
from shared.errors import FailedPrecondition, NeuropilError, ResourceExhausted
from shared.formats.simulations import ActivationScale

if TYPE_CHECKING:
    # It names this module's costs.
    from services.simulation.language_models.interface import LanguageModel

FloatArray = NDArray[np.float64]

DEFAULT_MIN_COVERAGE = 0.9
"""Smallest share of tokens with a distribution, where a request names none."""

MAX_EXPLANATION_CHARACTERS = 10_000
MAX_EXPLANATIONS = 256
MAX_SEQUENCES = 10_000
MAX_TOKENS = 500_000
MAX_SEQUENCE_TOKENS = 100_000
MAX_TOKEN_CHARACTERS = 10_000
MAX_CHARACTERS = 8 * MAX_TOKENS
"""Limits of one call, so that no call holds a simulator for hours."""


class TokenOutcome(Enum):
    """Why a token has no distribution."""

    MISSING = "missing"
    """There was no prediction at all."""
    MALFORMED = "malformed"
    """There was one, but it could not be read."""


@dataclass(frozen=True, slots=True)
class TokenIssue:
    """One token without a distribution."""

    position: int
    outcome: TokenOutcome
    reason: str
    """In a few words, the same for all tokens of one cause."""


@dataclass(frozen=True, slots=True)
class ValidityReport:
    """How many tokens of a simulation got a distribution, and why the others did not."""

    valid: int = 0
    missing: int = 0
    malformed: int = 0
    tokens_by_reason: tuple[tuple[str, int], ...] = ()

    @property
    def tokens(self) -> int:
        return self.valid + self.missing + self.malformed

    @property
    def coverage(self) -> float:
        """Share of tokens with a distribution; 1 where there are no tokens."""
        return self.valid / self.tokens if self.tokens else 1.0

    def __add__(self, other: Self) -> ValidityReport:
        reasons = Counter(dict(self.tokens_by_reason))
        reasons.update(dict(other.tokens_by_reason))
        return ValidityReport(
            self.valid + other.valid,
            self.missing + other.missing,
            self.malformed + other.malformed,
            tuple(sorted(reasons.items())),
        )

    def require(self, min_coverage: float) -> None:
        """Raise FailedPrecondition, with the reasons, where the coverage is too low."""
        if self.coverage >= min_coverage:
            return
        reasons = ", ".join(f"{reason} ({count})" for reason, count in self.tokens_by_reason)
        raise FailedPrecondition(
            f"only {self.valid} of {self.tokens} tokens got a distribution, a share of "
            f"{self.coverage:.3g} where {min_coverage:.3g} is asked for: {reasons}",
            reason="COVERAGE_TOO_LOW",
            metadata={
                "valid_tokens": str(self.valid),
                "missing_tokens": str(self.missing),
                "malformed_tokens": str(self.malformed),
            },
        )


@dataclass(frozen=True, slots=True)
class SimulationCost:
    """What simulating cost; costs add up."""

    calls: int = 0
    """Calls of a model; a call that serves several sequences counts for the first of them."""
    prompt_tokens_computed: int = 0
    prompt_tokens_reused: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Self) -> SimulationCost:
        return SimulationCost(
            self.calls + other.calls,
            self.prompt_tokens_computed + other.prompt_tokens_computed,
            self.prompt_tokens_reused + other.prompt_tokens_reused,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, eq=False, slots=True)
class SimulatedSequence:
    """What a simulator answers for one sequence of n tokens.

    `probabilities` [n, 11] has a row a token over the values 0 to 10 that adds up to 1, or a row
    of zeros for each token of `issues`.
    """

    tokens: Sequence[str]
    probabilities: FloatArray
    issues: tuple[TokenIssue, ...] = ()
    cost: SimulationCost = field(default_factory=SimulationCost)

    @property
    def report(self) -> ValidityReport:
        """How far to trust it."""
        missing = sum(issue.outcome is TokenOutcome.MISSING for issue in self.issues)
        reasons = Counter(issue.reason for issue in self.issues)
        return ValidityReport(
            len(self.tokens) - len(self.issues),
            missing,
            len(self.issues) - missing,
            tuple(sorted(reasons.items())),
        )

    def simulation(self) -> SequenceSimulation:
        """The simulation on the scale 0 to 10: expected values, NaN at tokens with an issue."""
        expected = self.probabilities @ NORMALIZED_VALUES
        expected[[issue.position for issue in self.issues]] = np.nan
        return SequenceSimulation(
            tokens=self.tokens,
            expected_activations=expected,
            activation_scale=ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS,
            distribution_values=NORMALIZED_VALUES,
            distribution_probabilities=self.probabilities,
        )


class Simulator(Protocol):
    """Predicts activations of a component on sequences from an explanation of it."""

    kind: ClassVar[str]
    """Kind in the configuration."""
    has_exact_probabilities: ClassVar[bool]
    """Whether the distributions are what a model computed, not made from one number."""
    description: ClassVar[str]
    """One sentence on what it can and can't do."""

    @property
    def name(self) -> str:
        """Name in the configuration."""
        ...

    @property
    def model(self) -> str:
        """Model that it runs, with its version as far as that is known before it is loaded."""
        ...

    @property
    def prompt_version(self) -> str:
        """Version of the prompt; empty where there is none."""
        ...

    @property
    def language_model(self) -> LanguageModel | None:
        """The language model that it asks, which judges and explainers can ask too; or None."""
        ...

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What was found out about its model or server at start; empty until it was."""
        ...

    @property
    def state(self) -> str:
        """`loading`, `ready`, or `failed: ` and why; calls try again where it failed."""
        ...

    def start(self) -> None:
        """Begin to load what it needs, without waiting for it."""
        ...

    def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """One result a sequence, in order, each as soon as it is there.

        Leaving the iteration stops the computation.

        Raises:
            InvalidInput, ResourceExhausted: as `check_request` says.
            Unavailable: a model or server that it needs can't be reached or loaded.
        """
        ...

    def simulate_explanations(
        self, explanations: Sequence[str], tokens: Sequence[str]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """Many explanations on one sequence: one result an explanation, in order.

        Raises:
            InvalidInput, ResourceExhausted: as `check_explanations` says.
            Unavailable: a model or server that it needs can't be reached or loaded.
        """
        ...

    async def close(self) -> None:
        """Stop, and free what it holds."""
        ...


class OneByOne(ABC):
    """Simulates many explanations of a sequence one after the other."""

    @abstractmethod
    def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """As `Simulator.simulate`."""

    async def simulate_explanations(
        self, explanations: Sequence[str], tokens: Sequence[str]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        """As `Simulator.simulate_explanations`."""
        check_explanations(explanations, tokens)
        for position, explanation in enumerate(explanations):
            with naming(position):
                async with aclosing(self.simulate(explanation, [tokens])) as results:
                    async for result in results:
                        yield result


@contextmanager
def naming(position: int) -> Iterator[None]:
    """Let an error of an explanation say which of `explanations` it is."""
    try:
        yield
    except NeuropilError as error:
        if error.field == "explanation":
            error.field = f"explanations[{position}]"
        raise


def check_explanations(explanations: Sequence[str], tokens: Sequence[str]) -> None:
    """Refuse what no simulator can do with many explanations of one sequence.

    Raises:
        InvalidInput: no explanation, one without a letter, digit or sign, or no tokens.
        ResourceExhausted: over the limits of one call.
    """
    if not explanations:
        raise InvalidInput("explanations is empty; one at least is needed", field="explanations")
    if len(explanations) > MAX_EXPLANATIONS:
        raise ResourceExhausted(
            f"{len(explanations)} explanations in one call; at most {MAX_EXPLANATIONS} are "
            "simulated",
            field="explanations",
            reason="TOO_MANY_EXPLANATIONS",
        )
    if not tokens:
        raise InvalidInput(
            "tokens is empty; one at least is needed", field="tokens", reason="EMPTY_SEQUENCE"
        )
    for position, explanation in enumerate(explanations):
        _check_explanation(explanation, f"explanations[{position}]")
    if len(tokens) > MAX_SEQUENCE_TOKENS:
        raise ResourceExhausted(
            f"tokens has {len(tokens)} tokens; at most {MAX_SEQUENCE_TOKENS} are simulated",
            field="tokens",
            reason="SEQUENCE_TOO_LONG",
        )
    total = len(tokens) * len(explanations)
    if total > MAX_TOKENS:
        raise ResourceExhausted(
            f"{total} tokens in one call, counted once an explanation; at most {MAX_TOKENS} are "
            "simulated",
            field="tokens",
            reason="TOO_MANY_TOKENS",
        )
    characters = _check_tokens(tokens, "tokens") * len(explanations)
    _check_characters(characters, "tokens", ", counted once an explanation")


def _check_tokens(tokens: Sequence[str], field: str) -> int:
    """The characters of a sequence; ResourceExhausted where a token has too many."""
    lengths = [len(token) for token in tokens]
    longest = max(lengths)
    if longest > MAX_TOKEN_CHARACTERS:
        raise ResourceExhausted(
            f"token {lengths.index(longest)} of {field} has {longest} characters; at most "
            f"{MAX_TOKEN_CHARACTERS} are read",
            field=field,
            reason="TOKEN_TOO_LONG",
        )
    return sum(lengths)


def _check_characters(characters: int, field: str, how: str = "") -> None:
    if characters > MAX_CHARACTERS:
        raise ResourceExhausted(
            f"{characters} characters of tokens in one call{how}; at most {MAX_CHARACTERS} are "
            "simulated",
            field=field,
            reason="TOO_MANY_TOKENS",
        )


def _check_explanation(explanation: str, field: str) -> None:
    if not explanation.strip():
        raise InvalidInput(f"{field} is empty; a sentence is needed", field=field)
    if len(explanation) > MAX_EXPLANATION_CHARACTERS:
        raise ResourceExhausted(
            f"{field} has {len(explanation)} characters; at most "
            f"{MAX_EXPLANATION_CHARACTERS} are read",
            field=field,
            reason="EXPLANATION_TOO_LONG",
        )


def check_request(explanation: str, sequences: Sequence[Sequence[str]]) -> None:
    """Refuse what no simulator can do.

    Raises:
        InvalidInput: an explanation without a letter, digit or sign, or a sequence without tokens.
        ResourceExhausted: the explanation, the sequences or a token are over the limits of a call.
    """
    _check_explanation(explanation, "explanation")
    if len(sequences) > MAX_SEQUENCES:
        raise ResourceExhausted(
            f"{len(sequences)} sequences in one call; at most {MAX_SEQUENCES} are simulated",
            field="sequences",
            reason="TOO_MANY_SEQUENCES",
        )
    for position, tokens in enumerate(sequences):
        if not len(tokens):
            raise InvalidInput(
                f"sequences[{position}] has no tokens; one at least is needed",
                field=f"sequences[{position}]",
                reason="EMPTY_SEQUENCE",
            )
        if len(tokens) > MAX_SEQUENCE_TOKENS:
            raise ResourceExhausted(
                f"sequences[{position}] has {len(tokens)} tokens; at most {MAX_SEQUENCE_TOKENS} "
                "are simulated",
                field=f"sequences[{position}]",
                reason="SEQUENCE_TOO_LONG",
            )
    total = sum(len(tokens) for tokens in sequences)
    if total > MAX_TOKENS:
        raise ResourceExhausted(
            f"{total} tokens in one call; at most {MAX_TOKENS} are simulated",
            field="sequences",
            reason="TOO_MANY_TOKENS",
        )
    characters = sum(
        _check_tokens(tokens, f"sequences[{position}]") for position, tokens in enumerate(sequences)
    )
    _check_characters(characters, "sequences")
