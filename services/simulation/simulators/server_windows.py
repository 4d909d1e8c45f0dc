"""Cuts what is longer than a server's model reads, and puts the parts together again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from services.simulation.language_models.remote.failures import UnreadableAnswer
from services.simulation.parsing.value_logprobs import Unreadable
from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.interface import (
    SimulatedSequence,
    SimulationCost,
    TokenIssue,
    TokenOutcome,
)
from shared.errors import ResourceExhausted

TOO_LONG = "the prompt for the token is longer than the server's model reads"


class Windows:
    """How many tokens of a sequence one prompt holds: halved whenever it was too long."""

    def __init__(self) -> None:
        self.longest: int | None = None
        self._any_fits = False

    def fit(self) -> None:
        """Note that a prompt was not too long, so that the explanation is not."""
        self._any_fits = True

    def of(self, tokens: Sequence[str], position: int) -> Sequence[str]:
        """The tokens from `position` on that the next prompt holds."""
        stop = len(tokens) if self.longest is None else position + self.longest
        return tokens[position:stop]

    def halve(self, error: ResourceExhausted, length: int) -> bool:
        """Make windows of `length` smaller; False where one token is too long.

        Raises:
            ResourceExhausted: the error is another, or the explanation alone is too long.
        """
        if error.reason != "PROMPT_TOO_LONG":
            raise error
        if length <= 1:
            if self._any_fits:
                return False
            raise ResourceExhausted(
                f"{error.message}; the explanation, or a token, leaves no room",
                field="explanation",
                reason="EXPLANATION_TOO_LONG",
                metadata=error.metadata,
            ) from error
        self.longest = min(self.longest or length, length // 2)
        return True


async def simulate_in_windows(
    tokens: Sequence[str],
    windows: Windows,
    simulate: Callable[[Sequence[str]], Awaitable[SimulatedSequence]],
) -> SimulatedSequence:
    """The sequence by as few windows as fit, each without what stands before it.

    A window whose answer can't be read has an issue at each token.
    """
    parts: list[SimulatedSequence] = []
    position = 0
    while position < len(tokens):
        window = windows.of(tokens, position)
        try:
            part = await simulate(window)
        except (Unreadable, UnreadableAnswer) as error:
            part = without_values(window, TokenOutcome.MALFORMED, str(error))
        except ResourceExhausted as error:
            if windows.halve(error, len(window)):
                continue
            part = without_values(window, TokenOutcome.MISSING, TOO_LONG)
        else:
            windows.fit()
        parts.append(part)
        position += len(window)
    return joined(tokens, parts)


def joined(tokens: Sequence[str], parts: Sequence[SimulatedSequence]) -> SimulatedSequence:
    """One sequence of its parts."""
    issues, cost, position = [], SimulationCost(), 0
    for part in parts:
        issues += [
            TokenIssue(issue.position + position, issue.outcome, issue.reason)
            for issue in part.issues
        ]
        cost += part.cost
        position += len(part.tokens)
    probabilities = np.concatenate([part.probabilities for part in parts])
    return SimulatedSequence(tokens, probabilities, tuple(issues), cost)


def without_values(
    tokens: Sequence[str],
    outcome: TokenOutcome,
    reason: str,
    cost: SimulationCost | None = None,
) -> SimulatedSequence:
    """A sequence with the same issue at each token."""
    issues = tuple(TokenIssue(position, outcome, reason) for position in range(len(tokens)))
    empty = np.zeros((len(tokens), NUM_VALUES))
    return SimulatedSequence(tokens, empty, issues, cost or SimulationCost(calls=1))
