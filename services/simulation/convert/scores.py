"""Scores as messages."""

from __future__ import annotations

from neuropil.simulation import v1
from services.simulation.scores.simulation_scores import (
    Score,
    ScoreTable,
    ScoreTriple,
    UndefinedReason,
)

_REASONS = {
    UndefinedReason.UNDEFINED_EMPTY: v1.UNDEFINED_REASON_EMPTY,
    UndefinedReason.UNDEFINED_SINGLE_TOKEN: v1.UNDEFINED_REASON_SINGLE_TOKEN,
    UndefinedReason.UNDEFINED_CONSTANT_SIMULATION: v1.UNDEFINED_REASON_CONSTANT_SIMULATION,
    UndefinedReason.UNDEFINED_CONSTANT_ACTIVATIONS: v1.UNDEFINED_REASON_CONSTANT_ACTIVATIONS,
    UndefinedReason.UNDEFINED_NON_FINITE_INPUT: v1.UNDEFINED_REASON_NON_FINITE_INPUT,
    UndefinedReason.UNDEFINED_ZERO_ACTIVATIONS: v1.UNDEFINED_REASON_ZERO_ACTIVATIONS,
    UndefinedReason.UNDEFINED_OVERFLOW: v1.UNDEFINED_REASON_OUT_OF_RANGE,
    UndefinedReason.UNDEFINED_SINGLE_CLASS: v1.UNDEFINED_REASON_SINGLE_CLASS,
    UndefinedReason.UNDEFINED_NO_POSITIVE_PREDICTIONS: (
        v1.UNDEFINED_REASON_NO_POSITIVE_PREDICTIONS
    ),
    UndefinedReason.UNDEFINED_NO_PREDICTIONS: v1.UNDEFINED_REASON_NO_PREDICTIONS,
}


def score_message(score: Score) -> v1.Score:
    """A score with its interval, or why there is none."""
    if score.reason is not None:
        return v1.Score(undefined_reason=_REASONS[score.reason])
    interval = score.interval
    return v1.Score(
        value=score.value,
        confidence_interval=(
            None if interval is None else v1.Interval(low=interval.low, high=interval.high)
        ),
    )


def scores_message(scores: ScoreTriple) -> v1.Scores:
    """The three scores."""
    return v1.Scores(
        ev_correlation=score_message(scores.correlation),
        r_squared=score_message(scores.rsquared),
        absolute_deviation_explained=score_message(scores.absolute_dev_explained),
    )


def score_table_message(table: ScoreTable) -> v1.ScoreSimulationsResponse:
    """The scores of each sequence, and of all together."""
    return v1.ScoreSimulationsResponse(
        sequence_scores=[scores_message(table[position]) for position in range(len(table))],
        scores=scores_message(table.overall),
    )
