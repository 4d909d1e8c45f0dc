"""Scores of requests as they are stored."""

from __future__ import annotations

import math

from neuropil.simulation import v1 as simulation
from shared.errors import InvalidArgument

_ROUNDING = 1e-6
"""How far a score may lie beyond its range by the rounding of whoever computed it."""

Stored = tuple[float | None, float | None, float | None]
"""Correlation, R squared, and absolute deviation explained; None where it is undefined."""


def stored_scores(scores: simulation.Scores, field: str) -> Stored:
    """The scores of a simulation; InvalidArgument, under `field`, for one that is out of range."""

    def value(name: str, lowest: float) -> float | None:
        score: simulation.Score = getattr(scores, name)
        if not score.HasField("value"):
            return None
        return stored_score(score.value, f"{field}.{name}.value", lowest)

    return (
        value("ev_correlation", -1),
        value("r_squared", -math.inf),
        value("absolute_deviation_explained", -math.inf),
    )


def stored_score(value: float, field: str, lowest: float) -> float | None:
    """A score from `lowest` to 1, both finite ends included; None for NaN, which is undefined.

    One that is beyond an end by rounding is that end. InvalidArgument names `field` where the score
    is infinite or out of its range.
    """
    if math.isnan(value):
        return None
    if math.isinf(value) or not lowest - _ROUNDING <= value <= 1 + _ROUNDING:
        bounds = "at most 1" if math.isinf(lowest) else f"from {lowest} to 1"
        raise InvalidArgument(f"{field} is {value}; such a score is {bounds}.", field=field)
    return min(max(value, lowest), 1.0)
