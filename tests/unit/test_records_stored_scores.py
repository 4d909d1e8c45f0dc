"""Which scores of a request are stored, and which are refused."""

from __future__ import annotations

import math

import pytest

from neuropil.simulation import v1 as simulation
from services.records.stored_scores import stored_scores
from shared.errors import InvalidArgument

NAMES = ("ev_correlation", "r_squared", "absolute_deviation_explained")


def scores(**values: float) -> simulation.Scores:
    return simulation.Scores(
        **{name: simulation.Score(value=value) for name, value in values.items()}
    )


def test_scores_in_their_ranges_are_kept() -> None:
    for correlation in (-1.0, -0.25, 0.0, 1.0):
        given = scores(
            ev_correlation=correlation, r_squared=-1e300, absolute_deviation_explained=1.0
        )
        assert stored_scores(given, "scores") == (correlation, -1e300, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_undefined_as_an_absent_score_is(name: str) -> None:
    for given in (scores(**{name: math.nan}), simulation.Scores()):
        assert stored_scores(given, "scores") == (None, None, None)
    reason = simulation.Score(undefined_reason=simulation.UNDEFINED_REASON_EMPTY)
    assert stored_scores(simulation.Scores(ev_correlation=reason), "scores")[0] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ev_correlation", 7.0),
        ("ev_correlation", -1.01),
        *((name, value) for name in NAMES for value in (1.01, 1e300, math.inf, -math.inf)),
    ],
)
def test_scores_out_of_their_ranges_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match="1") as caught:
        stored_scores(scores(**{name: value}), "scored_simulation.scores")
    assert caught.value.field == f"scored_simulation.scores.{name}.value"


def test_what_is_beyond_an_end_by_rounding_is_that_end() -> None:
    given = scores(ev_correlation=-1.0000000000000002, r_squared=1 + 1.2e-7)
    assert stored_scores(given, "scores") == (-1.0, 1.0, None)
