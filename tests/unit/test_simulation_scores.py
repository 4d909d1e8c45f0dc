"""Scores: against plain formulas, and every way in which one is undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.simulation.errors import InvalidInput
from services.simulation.scores.simulation_scores import (
    ScoreTriple,
    UndefinedReason,
    score,
    score_sequences,
)

FINITE = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6))


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray]]:
    lengths = draw(st.lists(st.integers(0, 12), max_size=8))
    true = [draw(arrays.arrays(np.float64, n, elements=FINITE)) for n in lengths]
    simulated = [draw(arrays.arrays(np.float64, n, elements=FINITE)) for n in lengths]
    return true, simulated


def plain_scores(true: np.ndarray, simulated: np.ndarray) -> tuple[float, float, float]:
    with np.errstate(all="ignore"):
        correlation = np.corrcoef(true, simulated)[0, 1] if len(true) > 1 else math.nan
        rsquared = 1 - np.mean((true - simulated) ** 2) / np.mean(true**2)
        deviation = 1 - np.mean(np.abs(true - simulated)) / np.mean(np.abs(true))
    return float(correlation), float(rsquared), float(deviation)


@settings(deadline=None)
@given(sequences())
def test_many_sequences_score_as_each_alone(
    pair: tuple[list[np.ndarray], list[np.ndarray]],
) -> None:
    true, simulated = pair
    table = score_sequences(
        np.concatenate([[], *true]), np.concatenate([[], *simulated]), [len(t) for t in true]
    )
    assert len(table) == len(true)
    for position, (own_true, own_simulated) in enumerate(zip(true, simulated, strict=True)):
        assert table[position] == score(own_true, own_simulated)
    together = score(np.concatenate([[], *true]), np.concatenate([[], *simulated]))
    assert_close(table.overall, together)


def assert_close(ours: ScoreTriple, theirs: ScoreTriple) -> None:
    for own, other in (
        (ours.correlation, theirs.correlation),
        (ours.rsquared, theirs.rsquared),
        (ours.absolute_dev_explained, theirs.absolute_dev_explained),
    ):
        assert own.reason == other.reason
        if other.value is not None:
            assert own.value == pytest.approx(other.value, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(sequences())
def test_scores_follow_the_formulas(pair: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    for true, simulated in zip(*pair, strict=True):
        if not len(true):
            continue
        ours = score(true, simulated)
        correlation, rsquared, deviation = plain_scores(true, simulated)
        constant = np.ptp(true) == 0 or np.ptp(simulated) == 0
        assert (ours.correlation.value is None) == constant
        if ours.correlation.value is not None:
            assert ours.correlation.value == pytest.approx(correlation, abs=1e-6)
        if true.any():
            assert ours.rsquared.value == pytest.approx(rsquared, rel=1e-9, abs=1e-9)
            assert ours.absolute_dev_explained.value == pytest.approx(deviation, rel=1e-9, abs=1e-9)
        else:
            assert ours.rsquared.reason == UndefinedReason.UNDEFINED_ZERO_ACTIVATIONS


def test_the_correlation_ignores_scale_and_offset() -> None:
    rng = np.random.default_rng(0)
    true, simulated = rng.random(50), rng.random(50)
    reference = score(true, simulated).preferred
    assert reference is not None
    for scale, offset in ((1e-200, 0.0), (1e200, 0.0), (3.0, 7.0), (1.0, 1e6)):
        other = score(true, simulated * scale + offset).preferred
        assert other == pytest.approx(reference, abs=1e-8)
    assert score(true, -simulated).preferred == pytest.approx(-reference, abs=1e-12)


def test_rsquared_ignores_a_shared_scale() -> None:
    rng = np.random.default_rng(1)
    true, simulated = rng.random(50), rng.random(50)
    reference = score(true, simulated)
    for scale in (1e-250, 1e-170, 1e170, 1e250):
        other = score(true * scale, simulated * scale)
        assert other.rsquared.value == pytest.approx(reference.rsquared.value, rel=1e-9)
        assert other.absolute_dev_explained.value == pytest.approx(
            reference.absolute_dev_explained.value, rel=1e-9
        )


def test_scores_of_all_survive_the_scale_of_one() -> None:
    table = score_sequences([1e200, 2e200, 1.0, 2.0], [1e200, 2e200, 1.0, 2.0], [2, 2])
    assert table.overall.preferred == pytest.approx(1.0)
    assert table.overall.rsquared.value == 1.0
    assert table[1].preferred == pytest.approx(1.0)


def test_a_perfect_simulation_scores_one() -> None:
    true = np.array([0.0, 0.1, 0.0, 3.0])
    perfect = score(true, true)
    assert perfect.correlation.value == pytest.approx(1.0)
    assert (perfect.rsquared.value, perfect.absolute_dev_explained.value) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("true", "simulated", "correlation", "others"),
    [
        ([], [], UndefinedReason.UNDEFINED_EMPTY, UndefinedReason.UNDEFINED_EMPTY),
        ([1.0], [2.0], UndefinedReason.UNDEFINED_SINGLE_TOKEN, None),
        # 0.1 summed ten times isn't 1, so a variance test would miss this constant.
        (list(range(10)), [0.1] * 10, UndefinedReason.UNDEFINED_CONSTANT_SIMULATION, None),
        ([0.1] * 10, list(range(10)), UndefinedReason.UNDEFINED_CONSTANT_ACTIVATIONS, None),
        (
            [0.0, 0.0],
            [0.0, 1.0],
            UndefinedReason.UNDEFINED_CONSTANT_ACTIVATIONS,
            UndefinedReason.UNDEFINED_ZERO_ACTIVATIONS,
        ),
        (
            [0.0, -0.0],
            [1.0, 1.0],
            UndefinedReason.UNDEFINED_CONSTANT_SIMULATION,
            UndefinedReason.UNDEFINED_ZERO_ACTIVATIONS,
        ),
        *(
            (
                true,
                simulated,
                UndefinedReason.UNDEFINED_NON_FINITE_INPUT,
                UndefinedReason.UNDEFINED_NON_FINITE_INPUT,
            )
            for bad in (math.nan, math.inf, -math.inf)
            for true, simulated in (([0.0, bad], [1.0, 2.0]), ([0.0, 1.0], [bad, 2.0]))
        ),
        ([1e-300, 2e-300], [-1e300, 1e300], None, UndefinedReason.UNDEFINED_OVERFLOW),
    ],
)
def test_undefined_scores_say_why(
    true: list[float],
    simulated: list[float],
    correlation: UndefinedReason | None,
    others: UndefinedReason | None,
) -> None:
    ours = score(true, simulated)
    for own, reason in (
        (ours.correlation, correlation),
        (ours.rsquared, others),
        (ours.absolute_dev_explained, others),
    ):
        assert own.reason == reason
        assert (own.value is None) == (reason is not None)
    assert ours.preferred == ours.correlation.value


def test_non_finite_input_spoils_its_own_sequence_alone() -> None:
    table = score_sequences([1, 2, math.nan, 4, 5, 7], [1, 3, 1, 2, 3, 4], [2, 2, 0, 2])
    assert [table[i].correlation.reason for i in range(4)] == [
        None,
        UndefinedReason.UNDEFINED_NON_FINITE_INPUT,
        UndefinedReason.UNDEFINED_EMPTY,
        None,
    ]
    assert table[3].preferred == pytest.approx(1.0)
    assert table.overall.rsquared.reason == UndefinedReason.UNDEFINED_NON_FINITE_INPUT


@pytest.mark.parametrize(
    ("true", "simulated", "lengths", "field"),
    [
        ([1, 2], [1], [2], "expected_activations"),
        ([1, 2], [1, 2], [3], "sequence_lengths"),
        ([1, 2], [1, 2], [3, -1], "sequence_lengths"),
        ([1, 2], [1, 2], [[2]], "sequence_lengths"),
        ([1, 2], [1, 2], ["two"], "sequence_lengths"),
        (["a", "b"], [1, 2], [2], "true_activations"),
        ([[1, 2]], [1, 2], [2], "true_activations"),
        ([1, 2], None, [2], "expected_activations"),
    ],
)
def test_bad_input_is_named(true: object, simulated: object, lengths: object, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        score_sequences(true, simulated, lengths)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert isinstance(caught.value, ValueError)
