"""How well probabilities of a class tell which of two classes something is of.

Balanced accuracy, accuracy, precision, recall, F1 and ROC AUC (of ties half counts), over
judgements that belong to sequences. A score that has no value is absent, with the reason beside it.

Intervals are percentiles of a bootstrap over sequences: judgements of one sequence aren't
independent, so they are drawn together. To what is drawn from, one judgement is added that is as
right as can be and one that is as wrong as can be, of either class: ten right answers among ten are
no certainty, and a bootstrap of the ten alone would say so.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.simulation.errors import (
    InvalidInput,
    as_vector,
    require_finite,
    require_same_length,
)
from services.simulation.scores.resamples import CONFIDENCE, MIN_DEFINED, resample_counts
from services.simulation.scores.simulation_scores import Interval, Score, UndefinedReason

FloatArray = NDArray[np.float64]

INTERVAL_METHOD = "percentile"

THRESHOLD = 0.5
"""A judgement predicts the class where its probability is at least this."""

_REASONS = (
    UndefinedReason.UNDEFINED_SINGLE_CLASS,
    UndefinedReason.UNDEFINED_SINGLE_CLASS,
    UndefinedReason.UNDEFINED_NO_POSITIVE_PREDICTIONS,
    UndefinedReason.UNDEFINED_SINGLE_CLASS,
    UndefinedReason.UNDEFINED_SINGLE_CLASS,
    UndefinedReason.UNDEFINED_SINGLE_CLASS,
)
"""Why each of the scores is undefined where there are judgements."""


@dataclass(frozen=True, slots=True)
class ClassificationScores:
    """The scores of judgements, each 0 to 1."""

    balanced_accuracy: Score
    """Mean of the shares of right judgements in the two classes; chance is 0.5."""
    accuracy: Score
    precision: Score
    recall: Score
    f1: Score
    roc_auc: Score
    """How often a judgement of class 1 is more probable than one of class 0; chance is 0.5."""


def classification_scores(
    labels: ArrayLike, probabilities: ArrayLike, groups: Sequence[Hashable], seed: int = 0
) -> ClassificationScores:
    """Score n judgements: `labels` [n] 0 or 1, `probabilities` [n] of class 1.

    `groups` [n] names the sequence that each judgement belongs to. Judgements without a probability
    are to be left out by the caller, who knows why they have none.

    Raises:
        InvalidInput: lengths differ, a label isn't 0 or 1, or a probability isn't from 0 to 1.
    """
    truth = as_vector(labels, "labels")
    likely = as_vector(probabilities, "probabilities")
    require_same_length(len(truth), "labels", len(likely), "probabilities")
    require_same_length(len(truth), "labels", len(groups), "groups")
    _require(np.isin(truth, (0.0, 1.0)), truth, "labels", "0 or 1 is needed")
    require_finite(likely, "probabilities")
    _require((likely >= 0) & (likely <= 1), likely, "probabilities", "a probability is from 0 to 1")
    if not len(truth):
        return ClassificationScores(*[Score(None, UndefinedReason.UNDEFINED_NO_PREDICTIONS)] * 6)
    numbers: dict[Hashable, int] = {}
    own = np.asarray([numbers.setdefault(group, len(numbers)) for group in groups])
    positive = truth == 1
    values = _Judgements(positive, likely).scores(np.ones((1, len(truth))))[:, 0]
    intervals = _intervals(positive, likely, own, len(numbers), seed)
    return ClassificationScores(
        *(
            Score(None, reason)
            if np.isnan(value)
            else Score(float(value), interval=_around(interval, float(value)))
            for value, interval, reason in zip(values, intervals, _REASONS, strict=True)
        )
    )


class _Judgements:
    """Judgements in the order of their probabilities, scored under many weightings at once."""

    def __init__(self, positive: NDArray[np.bool_], probabilities: FloatArray) -> None:
        self._order = np.argsort(probabilities, kind="stable")
        ordered = probabilities[self._order]
        self._positive = positive[self._order]
        self._first_of_tie = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        self._predicted = ordered >= THRESHOLD

    def scores(self, weights: FloatArray) -> FloatArray:
        """The six scores [6, n] under weights [n, judgements]; NaN where one is undefined."""
        weights = weights[:, self._order]
        as_positive = weights * self._positive
        as_negative = weights - as_positive
        positives, negatives = as_positive.sum(axis=1), as_negative.sum(axis=1)
        hits = as_positive[:, self._predicted].sum(axis=1)
        alarms = as_negative[:, self._predicted].sum(axis=1)
        tied_positive = np.add.reduceat(as_positive, self._first_of_tie, axis=1)
        tied_negative = np.add.reduceat(as_negative, self._first_of_tie, axis=1)
        below = np.cumsum(tied_negative, axis=1) - tied_negative / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = hits / positives
            return np.stack(
                [
                    (recall + (negatives - alarms) / negatives) / 2,
                    (hits + negatives - alarms) / (positives + negatives),
                    hits / (hits + alarms),
                    recall,
                    2 * hits / (hits + alarms + positives),
                    (tied_positive * below).sum(axis=1) / (positives * negatives),
                ]
            )


def _intervals(
    positive: NDArray[np.bool_],
    probabilities: FloatArray,
    groups: NDArray[np.int64],
    count: int,
    seed: int,
) -> list[Interval | None]:
    if count < 2:
        return [None] * 6
    # One certain judgement of either class and either answer, each a sequence of its own.
    judgements = _Judgements(
        np.concatenate([positive, [True, True, False, False]]),
        np.concatenate([probabilities, [np.inf, -np.inf, -np.inf, np.inf]]),
    )
    own = np.concatenate([groups, count + np.arange(4)])
    drawn = np.concatenate(
        [judgements.scores(counts[:, own]) for counts in resample_counts(count + 4, seed)],
        axis=1,
    )
    tail = (1 - CONFIDENCE) / 2
    result: list[Interval | None] = []
    for values in drawn:
        defined = values[~np.isnan(values)]
        if len(defined) < MIN_DEFINED * len(values):
            result.append(None)
            continue
        low, high = np.quantile(defined, [tail, 1 - tail])
        result.append(Interval(float(low), float(high)))
    return result


def _around(interval: Interval | None, value: float) -> Interval | None:
    """The interval with the score in it, which what was added may have left outside."""
    if interval is None:
        return None
    return Interval(min(interval.low, value), max(interval.high, value))


def _require(good: NDArray[np.bool_], values: FloatArray, field: str, needed: str) -> None:
    if not good.all():
        position = int(np.flatnonzero(~good)[0])
        raise InvalidInput(
            f"{field}[{position}] is {values[position]:g}; {needed}", field=f"{field}[{position}]"
        )
