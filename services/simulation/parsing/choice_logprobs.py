"""From the log probabilities of a next token to how probable each of some choices is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from services.simulation.parsing.value_logprobs import NOT_A_LOGPROB, Unreadable, is_logprob

FloatArray = NDArray[np.float64]

NO_CHOICE = "none of the choices is among the likely tokens"
OTHER_ANSWER = "the answer is none of the choices"


def choice_probabilities(
    top_logprobs: Mapping[str, float], choices: Sequence[str], *, any_spaces: bool = False
) -> FloatArray:
    """Probabilities [choices] that add up to 1, from the most likely tokens.

    A token counts for the choice that it reads as, or else for the one choice that it begins.
    `any_spaces` takes a token with spaces around it as the one without.

    Raises:
        Unreadable: none of the choices is among the tokens, or a log probability is none.
    """
    found: dict[int, list[float]] = {}
    for token, logprob in top_logprobs.items():
        choice = _choice_of(token.strip(" ") if any_spaces else token, choices)
        if choice is None:
            continue
        if not is_logprob(logprob):
            raise Unreadable(NOT_A_LOGPROB)
        found.setdefault(choice, []).append(logprob)
    highest = max((max(logprobs) for logprobs in found.values()), default=-math.inf)
    if highest == -math.inf:
        raise Unreadable(NO_CHOICE)
    probabilities = np.zeros(len(choices))
    for choice, logprobs in found.items():
        probabilities[choice] = sum(math.exp(logprob - highest) for logprob in logprobs)
    probabilities /= probabilities.sum()
    return probabilities


def answered_choice(text: str, choices: Sequence[str]) -> FloatArray:
    """All probability on the choice that a text is: bare, or as `{"answer": ...}`.

    Raises:
        Unreadable: it is none of them.
    """
    said = text.strip()
    try:
        answer = json.loads(said)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("answer"), str):
        said = answer["answer"].strip()
    for position, choice in enumerate(choices):
        if said == choice.strip():
            probabilities = np.zeros(len(choices))
            probabilities[position] = 1.0
            return probabilities
    raise Unreadable(OTHER_ANSWER)


def _choice_of(token: str, choices: Sequence[str]) -> int | None:
    if token in choices:
        return choices.index(token)
    begun = [position for position, choice in enumerate(choices) if choice.startswith(token)]
    return begun[0] if token and len(begun) == 1 else None
