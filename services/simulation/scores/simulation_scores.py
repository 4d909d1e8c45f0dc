"""How well simulated activations predict the true ones.

Three scores, each over one sequence or over several concatenated (never an average of scores):

- correlation: Pearson's r of true and simulated activations
- R squared: 1 - mean((t - p)^2) / mean(t^2), against the raw second moment, not the variance
- absolute deviation explained: 1 - mean|t - p| / mean|t|

A score that has no value is absent, with the reason beside it; it is never 0 and never NaN.
All sequences of a call are scored at once, in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.simulation.errors import InvalidInput, as_vector, require_same_length
from services.simulation.scores.intervals import overall_intervals
from services.simulation.scores.moments import Moments

FloatArray = NDArray[np.float64]


class UndefinedReason(IntEnum):
    """Why a score has no value."""

    UNDEFINED_EMPTY = 1
    """No tokens."""
    UNDEFINED_NON_FINITE_INPUT = 2
    """A true or simulated activation is NaN or infinite."""
    UNDEFINED_SINGLE_TOKEN = 3
    """A correlation needs two tokens."""
    UNDEFINED_CONSTANT_SIMULATION = 4
    """Every token has the same simulated activation."""
    UNDEFINED_CONSTANT_ACTIVATIONS = 5
    """Every token has the same true activation."""
    UNDEFINED_ZERO_ACTIVATIONS = 6
    """Every true activation is 0, so there is nothing to explain."""
    UNDEFINED_OVERFLOW = 7
    """The score is beyond what a double can hold."""
    UNDEFINED_SINGLE_CLASS = 8
    """Labels are of one class only."""
    UNDEFINED_NO_POSITIVE_PREDICTIONS = 9
    """Nothing is predicted to be of the class, so that there is no precision."""
    UNDEFINED_NO_PREDICTIONS = 10
    """There is no judgement."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a score lies with a confidence of 95 %: low <= high, both finite."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Score:
    """One score: a finite value, or nothing and the reason."""

    value: float | None
    reason: UndefinedReason | None = None
    interval: Interval | None = None
    """Absent where none was asked for, or where resamples say too little to have one."""


@dataclass(frozen=True, slots=True)
class ScoreTriple:
    """The three scores of one sequence, or of several as one."""

    correlation: Score
    rsquared: Score
    absolute_dev_explained: Score

    @property
    def preferred(self) -> float | None:
        """The correlation, or nothing where it is undefined."""
        return self.correlation.value


@dataclass(frozen=True, eq=False, slots=True)
class ScoreColumn:
    """One kind of score of n sequences: `values` [n], NaN where `reasons` [n] isn't 0."""

    values: FloatArray
    reasons: NDArray[np.uint8]

    def __getitem__(self, position: int) -> Score:
        reason = int(self.reasons[position])
        if reason:
            return Score(None, UndefinedReason(reason))
        return Score(float(self.values[position]))


@dataclass(frozen=True, eq=False, slots=True)
class ScoreTable:
    """The scores of n sequences, a column a kind."""

    correlation: ScoreColumn
    rsquared: ScoreColumn
    absolute_dev_explained: ScoreColumn
    overall: ScoreTriple
    """On all sequences concatenated."""

    def __len__(self) -> int:
        return len(self.correlation.values)

    def __getitem__(self, position: int) -> ScoreTriple:
        return ScoreTriple(
            self.correlation[position],
            self.rsquared[position],
            self.absolute_dev_explained[position],
        )


def score(true_activations: ArrayLike, expected_activations: ArrayLike) -> ScoreTriple:
    """Score one sequence, or several concatenated: two vectors [tokens].

    Raises:
        InvalidInput: the lengths differ, or something isn't a number.
    """
    true = as_vector(true_activations, "true_activations")
    return score_sequences(true, expected_activations, [len(true)]).overall


def score_sequences(
    true_activations: ArrayLike,
    expected_activations: ArrayLike,
    lengths: ArrayLike,
    interval_seed: int | None = None,
) -> ScoreTable:
    """Score n sequences that lie one after the other in two vectors [sum of lengths].

    Non-finite input leaves the scores of its own sequence undefined and the others as they are.
    With `interval_seed`, the scores of all together have intervals where there can be one.

    Raises:
        InvalidInput: the two vectors differ in length, `lengths` [n] don't add up to it or are
            negative, or something isn't a number.
    """
    true = as_vector(true_activations, "true_activations")
    expected = as_vector(expected_activations, "expected_activations")
    require_same_length(len(true), "true_activations", len(expected), "expected_activations")
    counts = _as_lengths(lengths, len(true))

    if not len(true):
        return _all_empty(len(counts))
    filled = counts > 0
    lengths_filled = counts[filled]
    starts = np.cumsum(lengths_filled) - lengths_filled
    bad_rows = np.zeros(len(starts), dtype=np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(true.sum() + expected.sum())
    if suspicious:
        bad = ~(np.isfinite(true) & np.isfinite(expected))
        bad_rows = np.logical_or.reduceat(bad, starts)
        true, expected = np.where(bad, 0.0, true), np.where(bad, 0.0, expected)

    def tokens(row: int) -> tuple[FloatArray, FloatArray]:
        span = slice(int(starts[row]), int(starts[row] + lengths_filled[row]))
        return true[span], expected[span]

    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        moments = Moments.of_sequences(true, expected, lengths_filled, starts)
        values, reasons = _from_moments(moments, tokens)
        together = moments.concatenated()
        overall = _from_moments(together, lambda _: (true, expected))
    reasons[:, bad_rows] = UndefinedReason.UNDEFINED_NON_FINITE_INPUT
    if bad_rows.any():
        overall[1][:] = UndefinedReason.UNDEFINED_NON_FINITE_INPUT
    all_values = np.full((3, len(counts)), np.nan)
    all_reasons = np.full((3, len(counts)), UndefinedReason.UNDEFINED_EMPTY, dtype=np.uint8)
    all_values[:, filled], all_reasons[:, filled] = values, reasons
    all_values[all_reasons > 0] = np.nan
    correlation, rsquared, deviation = map(ScoreColumn, all_values, all_reasons)
    scores = [ScoreColumn(*column)[0] for column in zip(*overall, strict=True)]
    if interval_seed is not None and not bad_rows.any() and not together.lossy[0]:
        ends = overall_intervals(moments, interval_seed)
        scores = [_with_interval(*pair) for pair in zip(scores, ends, strict=True)]
    return ScoreTable(correlation, rsquared, deviation, ScoreTriple(*scores))


def _with_interval(score: Score, ends: FloatArray) -> Score:
    if score.value is None or not np.isfinite(ends).all():
        return score
    low, high = ends.tolist()
    return Score(score.value, interval=Interval(min(low, score.value), max(high, score.value)))


def _from_moments(
    moments: Moments, tokens: Callable[[int], tuple[FloatArray, FloatArray]]
) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Scores [3, n] and reasons [3, n]; `tokens` gives a row's activations, true and expected."""
    reasons = np.zeros((3, len(moments.counts)), dtype=np.uint8)
    reasons[0, moments.true_constant] = UndefinedReason.UNDEFINED_CONSTANT_ACTIVATIONS
    reasons[0, moments.expected_constant] = UndefinedReason.UNDEFINED_CONSTANT_SIMULATION
    reasons[0, moments.counts == 1] = UndefinedReason.UNDEFINED_SINGLE_TOKEN
    reasons[1:, moments.true_zero] = UndefinedReason.UNDEFINED_ZERO_ACTIVATIONS
    values = np.empty((3, len(moments.counts)))
    norms = np.sqrt(moments.true_deviation) * np.sqrt(moments.expected_deviation)
    values[0] = np.clip(moments.codeviation / norms, -1.0, 1.0)
    values[1] = 1.0 - moments.error_squared / moments.true_squared
    values[2] = 1.0 - moments.error_absolute / moments.true_absolute
    for row in np.flatnonzero(moments.lossy):
        values[:, row] = _score_scaled(*tokens(int(row)))
    reasons[(reasons == 0) & ~np.isfinite(values)] = UndefinedReason.UNDEFINED_OVERFLOW
    return values, reasons


def _score_scaled(true: FloatArray, expected: FloatArray) -> tuple[float, float, float]:
    """The scores of one sequence whose squares leave the range of a double: scaled first.

    The correlation doesn't change with the scale of either side, the other two not with a scale
    that both share. NaN or infinity where even so no double holds the result.
    """
    scale = float(np.max(np.abs(true)))
    unit, shared = true / scale, expected / scale
    rsquared = 1.0 - np.mean(np.square(unit - shared)) / np.mean(np.square(unit))
    deviation = 1.0 - np.mean(np.abs(unit - shared)) / np.mean(np.abs(unit))
    deltas = [_centred(side) for side in (true, expected)]
    norms = [float(np.sqrt(delta @ delta)) for delta in deltas]
    correlation = (deltas[0] / norms[0]) @ (deltas[1] / norms[1])
    return float(np.clip(correlation, -1.0, 1.0)), float(rsquared), float(deviation)


def _centred(values: FloatArray) -> FloatArray:
    unit = values / np.max(np.abs(values))
    unit = unit - unit.mean()
    result: FloatArray = unit / np.max(np.abs(unit))
    return result


def _as_lengths(lengths: ArrayLike, total: int) -> NDArray[np.int64]:
    try:
        counts = np.asarray(lengths, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"sequence_lengths must be whole numbers: {error}", field="sequence_lengths"
        ) from error
    if counts.ndim != 1 or (counts < 0).any():
        raise InvalidInput(
            "sequence_lengths must be one list of numbers that are >= 0", field="sequence_lengths"
        )
    if int(counts.sum()) != total:
        raise InvalidInput(
            f"sequence_lengths add up to {int(counts.sum())}, but there are {total} activations",
            field="sequence_lengths",
            reason="LENGTHS_DIFFER",
        )
    return counts


def _all_empty(sequences: int) -> ScoreTable:
    reasons = np.full(sequences, UndefinedReason.UNDEFINED_EMPTY, dtype=np.uint8)
    column = ScoreColumn(np.full(sequences, np.nan), reasons)
    nothing = Score(None, UndefinedReason.UNDEFINED_EMPTY)
    return ScoreTable(column, column, column, ScoreTriple(nothing, nothing, nothing))
