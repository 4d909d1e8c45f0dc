"""How well simulated activations predict the true ones.

Three scores, each over one sequence or over several concatenated (never an average of scores):

- correlation: Pearson's r of true and simulated activations
- R squared: 1 - mean((t - p)^2) / mean(t^2), against the raw second moment, not the variance
- absolute deviation explained: 1 - mean|t - p| / mean|t|

A score that has no value is absent, with the reason beside it; it is never 0 and never NaN.
All sequences of a call are scored at once, in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.simulation.errors import InvalidInput, as_vector, require_same_length

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


@dataclass(frozen=True, slots=True)
class Score:
    """One score: a finite value, or nothing and the reason."""

    value: float | None
    reason: UndefinedReason | None = None


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
    return score_sequences(true, expected_activations, [len(true)])[0]


def score_sequences(
    true_activations: ArrayLike, expected_activations: ArrayLike, lengths: ArrayLike
) -> ScoreTable:
    """Score n sequences that lie one after the other in two vectors [sum of lengths].

    Non-finite input leaves the scores of its own sequence undefined and the others as they are.

    Raises:
        InvalidInput: the two vectors differ in length, `lengths` [n] don't add up to it or are
            negative, or something isn't a number.
    """
    true = as_vector(true_activations, "true_activations")
    simulated = as_vector(expected_activations, "expected_activations")
    require_same_length(len(true), "true_activations", len(simulated), "expected_activations")
    counts = _as_lengths(lengths, len(true))

    filled = counts > 0
    if not filled.all():
        return _with_empty_rows(score_sequences(true, simulated, counts[filled]), filled)
    if not len(counts):
        return _table(np.zeros((3, 0)), np.zeros((3, 0), dtype=np.uint8))

    starts = np.cumsum(counts) - counts
    finite: NDArray[np.bool_] | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        overflowed = not np.isfinite(true.sum() + simulated.sum())
    if overflowed:
        bad = ~(np.isfinite(true) & np.isfinite(simulated))
        finite = ~np.logical_or.reduceat(bad, starts)
        true, simulated = np.where(bad, 0.0, true), np.where(bad, 0.0, simulated)
    values, reasons = _score_filled(true, simulated, counts, starts)
    if finite is not None:
        reasons[:, ~finite] = UndefinedReason.UNDEFINED_NON_FINITE_INPUT
    values[reasons > 0] = np.nan
    return _table(values, reasons)


# A sum of squares outside of this range has lost digits, or all of them.
_SMALLEST, _LARGEST = 1e-280, 1e280


def _score_filled(
    true: FloatArray, simulated: FloatArray, counts: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Scores [3, n] and reasons [3, n] of sequences that are finite and not empty."""
    lowest_true = np.minimum.reduceat(true, starts)
    highest_true = np.maximum.reduceat(true, starts)
    lowest_simulated = np.minimum.reduceat(simulated, starts)
    highest_simulated = np.maximum.reduceat(simulated, starts)

    # Constancy is read from the extrema: a variance of equal values needn't round to 0.
    reasons = np.zeros((3, len(counts)), dtype=np.uint8)
    reasons[0, lowest_true == highest_true] = UndefinedReason.UNDEFINED_CONSTANT_ACTIVATIONS
    reasons[0, lowest_simulated == highest_simulated] = (
        UndefinedReason.UNDEFINED_CONSTANT_SIMULATION
    )
    reasons[0, counts == 1] = UndefinedReason.UNDEFINED_SINGLE_TOKEN
    reasons[1:, (lowest_true == 0) & (highest_true == 0)] = (
        UndefinedReason.UNDEFINED_ZERO_ACTIVATIONS
    )

    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        sums = _sums(true, simulated, counts, starts)
        second, squared_error, absolute, absolute_error, variance_t, variance_s, covariance = sums
        values = np.empty((3, len(counts)))
        values[0] = np.clip(covariance / (np.sqrt(variance_t) * np.sqrt(variance_s)), -1.0, 1.0)
        values[1] = 1.0 - squared_error / second
        values[2] = 1.0 - absolute_error / absolute
    suspect = _out_of_range(second, np.where(absolute_error == 0, second, squared_error))
    suspect &= reasons[1] == 0
    suspect |= _out_of_range(variance_t, variance_s) & (reasons[0] == 0)
    suspect |= ~np.isfinite(absolute_error) | ~np.isfinite(absolute)
    for row in np.flatnonzero(suspect):
        span = slice(int(starts[row]), int(starts[row] + counts[row]))
        values[:, row] = _score_scaled(true[span], simulated[span])
    undefined = (reasons == 0) & ~np.isfinite(values)
    reasons[undefined] = UndefinedReason.UNDEFINED_OVERFLOW
    return values, reasons


def _sums(
    true: FloatArray, simulated: FloatArray, counts: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[FloatArray, ...]:
    def total(values: FloatArray) -> FloatArray:
        return np.add.reduceat(values, starts)

    error = true - simulated
    centred_true = true - np.repeat(total(true) / counts, counts)
    centred_simulated = simulated - np.repeat(total(simulated) / counts, counts)
    return (
        total(true * true),
        total(error * error),
        total(np.abs(true)),
        total(np.abs(error)),
        total(centred_true * centred_true),
        total(centred_simulated * centred_simulated),
        total(centred_true * centred_simulated),
    )


def _out_of_range(first: FloatArray, second: FloatArray) -> NDArray[np.bool_]:
    low, high = np.minimum(first, second), np.maximum(first, second)
    return ~((low >= _SMALLEST) & (high <= _LARGEST))


def _score_scaled(true: FloatArray, simulated: FloatArray) -> tuple[float, float, float]:
    """The scores of one sequence whose squares leave the range of a double: scaled first.

    The correlation doesn't change with the scale of either side, the other two not with a scale
    that both share. NaN or infinity where even so no double holds the result.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        scale = float(np.max(np.abs(true)))
        unit, shared = true / scale, simulated / scale
        rsquared = 1.0 - np.mean(np.square(unit - shared)) / np.mean(np.square(unit))
        deviation = 1.0 - np.mean(np.abs(unit - shared)) / np.mean(np.abs(unit))
        deltas = [_centred(side) for side in (true, simulated)]
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


def _with_empty_rows(filled_rows: ScoreTable, filled: NDArray[np.bool_]) -> ScoreTable:
    values = np.full((3, len(filled)), np.nan)
    reasons = np.full((3, len(filled)), UndefinedReason.UNDEFINED_EMPTY, dtype=np.uint8)
    columns = (filled_rows.correlation, filled_rows.rsquared, filled_rows.absolute_dev_explained)
    for row, column in enumerate(columns):
        values[row, filled] = column.values
        reasons[row, filled] = column.reasons
    return _table(values, reasons)


def _table(values: FloatArray, reasons: NDArray[np.uint8]) -> ScoreTable:
    return ScoreTable(*(ScoreColumn(values[row], reasons[row]) for row in range(3)))
