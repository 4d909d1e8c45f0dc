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
    naming,
)
from shared.errors import ResourceExhausted

TOO_LONG = "the prompt for the token is longer than the server's model reads"
_SHORT = ("a",)


Simulate = Callable[[Sequence[str]], Awaitable[SimulatedSequence]]


async def numbered(
    position: int, simulate: Callable[[], Awaitable[SimulatedSequence]]
) -> SimulatedSequence:
    """Of several explanations, the one at `position`; errors name it."""
    with naming(position):
        return await simulate()


async def simulate_in_windows(
    tokens: Sequence[str], simulate: Simulate, longest: int | None = None
) -> SimulatedSequence:
    """The sequence by as few windows as fit, each without what stands before it.

    A window has `longest` tokens at most; whenever one is too long, it and those after it are
    halved. So the answer doesn't depend on other sequences. A window whose answer can't be read has
    an issue at each token.

    Raises:
        ResourceExhausted: `EXPLANATION_TOO_LONG`, or as `simulate` says.
    """
    parts: list[SimulatedSequence] = []
    position = 0
    fits = False
    while position < len(tokens):
        window = tokens[position : None if longest is None else position + longest]
        try:
            part = await simulate(window)
            fits = True
        except (Unreadable, UnreadableAnswer) as error:
            part = without_values(window, TokenOutcome.MALFORMED, str(error))
        except ResourceExhausted as error:
            require_too_long(error)
            if len(window) > 1:
                longest = len(window) // 2
                continue
            cost = SimulationCost() if fits else await room(simulate, error)
            part = too_long(window, cost)
            fits = True
        parts.append(part)
        position += len(window)
    return joined(tokens, parts)


def require_too_long(error: ResourceExhausted) -> None:
    """Raise the error where it isn't that of a prompt which is too long."""
    if error.reason != "PROMPT_TOO_LONG":
        raise error


async def room(simulate: Simulate, error: ResourceExhausted) -> SimulationCost:
    """What it costs to find out that the explanation leaves room for a short token.

    Raises:
        ResourceExhausted: it doesn't: the explanation is too long, not the token of `error`.
    """
    try:
        return (await simulate(_SHORT)).cost
    except (Unreadable, UnreadableAnswer):
        return SimulationCost(calls=1)
    except ResourceExhausted as short:
        require_too_long(short)
        raise ResourceExhausted(
            f"{short.message}; the explanation leaves no room for a token",
            field="explanation",
            reason="EXPLANATION_TOO_LONG",
            metadata=error.metadata,
        ) from error


def too_long(token: Sequence[str], cost: SimulationCost) -> SimulatedSequence:
    """A token that no prompt holds; its own refused request is one call."""
    spent = cost + SimulationCost(calls=1)
    return without_values(token, TokenOutcome.MISSING, TOO_LONG, spent)


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
