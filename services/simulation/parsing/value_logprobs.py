"""From the log probabilities of a next token to a distribution over the values 0 to 10."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from services.simulation.sequence_simulation import NUM_VALUES

FloatArray = NDArray[np.float64]

NO_VALUE = "no value from 0 to 10 among the likely tokens"
NOT_A_LOGPROB = "a log probability is not a number of at most 0"

_ROUNDING = 1e-3
"""How far above 0 rounding on a server may carry a log probability."""
_VALUES = {str(value): value for value in range(NUM_VALUES)}


class Unreadable(ValueError):
    """What a model answered can't be read; the message is a short reason for reports."""


def value_distribution(top_logprobs: Mapping[str, float]) -> FloatArray:
    """Probabilities [11] of the values, from the most likely tokens and their log probabilities.

    p(v) = exp(lp(v)) / sum over the values that are there of exp(lp), where only the tokens that
    read exactly "0" to "10" are values. The maximum is subtracted before exp, so values of any
    size have a distribution.

    Raises:
        Unreadable: no value among the tokens, or a log probability that is none.
    """
    kept = {_VALUES[token]: lp for token, lp in top_logprobs.items() if token in _VALUES}
    if not kept:
        raise Unreadable(NO_VALUE)
    if not all(is_logprob(logprob) for logprob in kept.values()):
        raise Unreadable(NOT_A_LOGPROB)
    highest = max(kept.values())
    if highest == -math.inf:
        raise Unreadable(NO_VALUE)
    probabilities = np.zeros(NUM_VALUES)
    for value, logprob in kept.items():
        probabilities[value] = math.exp(logprob - highest)
    probabilities /= probabilities.sum()
    return probabilities


def is_logprob(value: object) -> bool:
    """Whether it is a number that a log probability can be; minus infinity can."""
    # NaN fails the comparison.
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= _ROUNDING
