"""Answers in JSON: one item a token, read strictly, with a reason for each that is not as asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.interface import TokenIssue, TokenOutcome

FloatArray = NDArray[np.float64]

MAX_VALUE = NUM_VALUES - 1

NO_ANSWER = "the answer is empty"
CUT_OFF = "the answer was cut off"
NOT_JSON = "the answer is not JSON"
NO_LIST = "the answer has no list `activations`"
TOO_MANY = "the answer has more items than there are tokens"
NO_ITEM = "the answer has no item for the token"
NOT_AN_OBJECT = "the item is not an object"
OTHER_TOKEN = "the item's token is another one"
NOT_A_NUMBER = "the item's activation is not a number"
OUT_OF_RANGE = "the item's activation is not from 0 to 10"


def read_structured_answer(
    text: str, tokens: Sequence[str], *, finished: bool = True
) -> tuple[FloatArray, tuple[TokenIssue, ...]]:
    """Probabilities [tokens, 11], and an issue with a row of zeros where there is no value.

    The text is `{"activations": [{"token": ..., "activation": ...}, ...]}` with one item a token,
    in order; spaces at the ends of a token don't count. A value between two whole numbers
    is divided among them, so that the expected value is what was answered.
    """
    probabilities = np.zeros((len(tokens), NUM_VALUES))
    items, outcome, reason = _items(text, len(tokens), finished=finished)
    issues = []
    for position, token in enumerate(tokens):
        if reason:
            issues.append(TokenIssue(position, outcome, reason))
            continue
        if position >= len(items):
            issues.append(TokenIssue(position, TokenOutcome.MISSING, NO_ITEM))
            continue
        value = _value(items[position], token)
        if isinstance(value, str):
            issues.append(TokenIssue(position, TokenOutcome.MALFORMED, value))
        else:
            probabilities[position] = point_distribution(value)
    return probabilities, tuple(issues)


def point_distribution(value: float) -> FloatArray:
    """Probabilities [11] whose expected value is `value` (0 to 10), on its whole neighbours."""
    probabilities = np.zeros(NUM_VALUES)
    below = min(math.floor(value), MAX_VALUE - 1)
    probabilities[below + 1] = value - below
    probabilities[below] = 1.0 - probabilities[below + 1]
    return probabilities


def _items(text: str, tokens: int, *, finished: bool) -> tuple[list[Any], TokenOutcome, str]:
    if not text.strip():
        return [], TokenOutcome.MISSING, NO_ANSWER
    try:
        answer = msgspec.json.decode(text.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, RecursionError, ValueError):
        return [], TokenOutcome.MALFORMED, NOT_JSON if finished else CUT_OFF
    items = answer.get("activations") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        return [], TokenOutcome.MALFORMED, NO_LIST
    if len(items) > tokens:
        return [], TokenOutcome.MALFORMED, TOO_MANY
    return items, TokenOutcome.MALFORMED, ""


def _value(item: object, token: str) -> float | str:
    """The activation that an item says, or what is wrong with it."""
    if not isinstance(item, dict):
        return NOT_AN_OBJECT
    said = item.get("token")
    if not isinstance(said, str) or said.strip(" ") != token.strip(" "):
        return OTHER_TOKEN
    value = item.get("activation")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return NOT_A_NUMBER
    return float(value) if 0 <= value <= MAX_VALUE else OUT_OF_RANGE
