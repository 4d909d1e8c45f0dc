"""Intervals of the three scores: against plain formulas, where there is none, their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from services.simulation.scores import intervals
from services.simulation.scores.moments import Moments
from services.simulation.scores.resamples import RESAMPLES, resample_counts
from services.simulation.scores.simulation_scores import Interval, ScoreTriple, score_sequences
from tests.load.simulation_intervals import KINDS, coverage

FloatArray = NDArray[np.float64]


def draw(seed: int, sequences: int = 12, tokens: int = 9) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    true = np.maximum(rng.normal(size=(sequences, tokens)), 0)
    return true, 0.7 * true + 0.3 * rng.random((sequences, tokens))


def overall(true: FloatArray, expected: FloatArray, seed: int | None = 0) -> ScoreTriple:
    lengths = np.full(len(true), true.shape[1])
    return score_sequences(true.ravel(), expected.ravel(), lengths, seed).overall


def ends(scores: ScoreTriple) -> list[Interval | None]:
    return [
        scores.correlation.interval,
        scores.rsquared.interval,
        scores.absolute_dev_explained.interval,
    ]


def values(scores: ScoreTriple) -> list[float | None]:
    return [
        scores.correlation.value,
        scores.rsquared.value,
        scores.absolute_dev_explained.value,
    ]


def plain(true: FloatArray, expected: FloatArray, counts: FloatArray) -> FloatArray:
    """The scores on their scale, with every sequence as often as it is drawn."""
    rows = np.repeat(np.arange(len(true)), counts.astype(int))
    correlation, rsquared, deviation = values(overall(true[rows], expected[rows], None))
    assert correlation is not None
    assert rsquared is not None
    assert deviation is not None
    return np.array([np.arctanh(correlation), np.log(1 - rsquared), np.log(1 - deviation)])


def moments(true: FloatArray, expected: FloatArray) -> Moments:
    counts = np.full(len(true), true.shape[1])
    return Moments.of_sequences(true.ravel(), expected.ravel(), counts, np.cumsum(counts) - counts)


def test_a_resample_is_scored_as_its_sequences_are() -> None:
    true, expected = draw(0)
    features = intervals._features(moments(true, expected))
    counts = np.concatenate(list(resample_counts(len(true), 5, 20)))
    assert (counts.sum(axis=1) == len(true)).all()
    at_once = intervals._transformed(counts @ features)
    base = intervals._transformed(features.sum(axis=0)[np.newaxis])[:, 0]
    for row, drawn in enumerate(counts):
        alone = plain(true, expected, drawn) - plain(true, expected, np.ones(len(true)))
        np.testing.assert_allclose(at_once[:, row] - base, alone, rtol=1e-9, atol=1e-9)


def test_standard_errors_are_those_of_derivatives() -> None:
    true, expected = draw(1)
    features = intervals._features(moments(true, expected))
    columns = np.concatenate([features, intervals._products(features)], axis=1)
    counts = np.concatenate(list(resample_counts(len(true), 6, 10)))
    ours = intervals._standard_errors(counts @ columns, len(true))
    step = 1e-5
    for row, drawn in enumerate(counts):
        slopes = []
        for sequence in range(len(true)):
            shift = np.zeros(len(true))
            shift[sequence] = step
            both = intervals._transformed(np.stack([drawn + shift, drawn - shift]) @ features)
            slopes.append((both[:, 0] - both[:, 1]) / (2 * step))
        variance = (drawn[:, np.newaxis] * np.square(slopes)).sum(axis=0)
        expected_error = np.sqrt(variance * len(true) / (len(true) - 1))
        np.testing.assert_allclose(ours[:, row], expected_error, rtol=1e-6)


def test_an_interval_is_what_its_formula_says() -> None:
    true, expected = draw(2, 24)
    sequences = len(true)
    features = intervals._features(moments(true, expected))
    columns = np.concatenate([features, intervals._products(features)], axis=1)
    counts = np.concatenate(list(resample_counts(sequences, 9)))
    errors = intervals._standard_errors(counts @ columns, sequences)
    all_in = np.ones(sequences)
    estimate = plain(true, expected, all_in)
    left_out = np.array([plain(true, expected, all_in - row) for row in np.eye(sequences)])
    jackknife = np.sqrt(
        (sequences - 1) / sequences * np.square(left_out - left_out.mean(axis=0)).sum(axis=0)
    )
    drawn = np.array([plain(true, expected, row) for row in counts])
    pivots = np.sort((drawn - estimate) / errors.T, axis=0)
    low = estimate - pivots[-26] * jackknife
    high = estimate - pivots[25] * jackknife
    theirs = [
        (np.tanh(low[0]), np.tanh(high[0])),
        (1 - np.exp(high[1]), 1 - np.exp(low[1])),
        (1 - np.exp(high[2]), 1 - np.exp(low[2])),
    ]
    for ours, pair in zip(ends(overall(true, expected, 9)), theirs, strict=True):
        assert ours is not None
        assert (ours.low, ours.high) == pytest.approx(pair, rel=1e-7)


def test_of_few_sequences_the_spread_is_that_of_students_t() -> None:
    true, expected = draw(2, 7)
    all_in = np.ones(7)
    estimate = plain(true, expected, all_in)
    left_out = np.array([plain(true, expected, all_in - row) for row in np.eye(7)])
    error = np.sqrt(6 / 7 * np.square(left_out - left_out.mean(axis=0)).sum(axis=0))
    low, high = estimate - 2.4469118511 * error, estimate + 2.4469118511 * error
    theirs = [
        (np.tanh(low[0]), np.tanh(high[0])),
        (1 - np.exp(high[1]), 1 - np.exp(low[1])),
        (1 - np.exp(high[2]), 1 - np.exp(low[2])),
    ]
    for seed in (1, 2):
        for ours, pair in zip(ends(overall(true, expected, seed)), theirs, strict=True):
            assert ours is not None
            assert (ours.low, ours.high) == pytest.approx(pair, rel=1e-7)
    assert [intervals.interval_method(count) for count in (19, 20)] == ["student-t", "bootstrap-t"]


def test_intervals_follow_the_seed_and_leave_the_scores_alone() -> None:
    true, expected = draw(3, 24)
    first, again, other = (overall(true, expected, seed) for seed in (1, 1, 2**64 - 1))
    assert first == again
    assert values(first) == values(other) == values(overall(true, expected, None))
    assert ends(first) != ends(other)
    assert ends(overall(true, expected, None)) == [None] * 3


@pytest.mark.parametrize("scale", [1e-90, 1e90])
def test_intervals_do_not_depend_on_the_scale(scale: float) -> None:
    true, expected = draw(4)
    for own, other in zip(
        ends(overall(true, expected)), ends(overall(true * scale, expected * scale)), strict=True
    ):
        assert own is not None
        assert other is not None
        assert (own.low, own.high) == pytest.approx((other.low, other.high), rel=1e-6)


def test_an_opposite_simulation_has_the_opposite_interval() -> None:
    true, expected = draw(5)
    for_it, against = (ends(overall(true, sign * expected))[0] for sign in (1, -1))
    assert for_it is not None
    assert against is not None
    assert (against.low, against.high) == pytest.approx((-for_it.high, -for_it.low), rel=1e-9)


@pytest.mark.parametrize("sequences", [1, 2])
def test_too_few_sequences_have_no_interval(sequences: int) -> None:
    assert ends(overall(*draw(6, sequences))) == [None] * 3


def test_a_few_sequences_have_a_wide_one() -> None:
    few, many = (ends(overall(*draw(7, sequences)))[1] for sequences in (5, 500))
    assert few is not None
    assert many is not None
    assert few.high - few.low > 5 * (many.high - many.low)


def test_what_hangs_on_one_sequence_has_no_interval() -> None:
    true, expected = np.zeros((50, 8)), np.tile(np.arange(8.0), (50, 1))
    true[3, 2] = 1.0
    scores = overall(true, expected)
    assert None not in values(scores)
    assert ends(scores) == [None] * 3


def test_equal_sequences_have_no_interval() -> None:
    true, expected = draw(8, 1)
    assert ends(overall(np.tile(true, (20, 1)), np.tile(expected, (20, 1)))) == [None] * 3


def test_a_perfect_simulation_has_an_interval_of_no_width() -> None:
    true, _ = draw(9)
    for own in ends(overall(true, true)):
        assert own is not None
        assert (own.low, own.high) == pytest.approx((1.0, 1.0), abs=1e-12)
    scaled = ends(overall(true, 3 * true))[0]
    assert scaled is not None
    assert (scaled.low, scaled.high) == pytest.approx((1.0, 1.0), abs=1e-11)


def test_undefined_scores_have_no_interval() -> None:
    true, expected = draw(10)
    assert ends(overall(true * np.nan, expected)) == [None] * 3
    assert ends(overall(true, expected * 0))[0] is None
    assert ends(overall(true * 0, expected)) == [None] * 3


def test_sequences_without_tokens_are_passed_over() -> None:
    true, expected = draw(11)
    with_empty = np.insert(np.full(len(true), true.shape[1]), 4, 0)
    scores = score_sequences(true.ravel(), expected.ravel(), with_empty, 3).overall
    assert scores == overall(true, expected, 3)


def test_many_sequences_are_resampled_in_blocks() -> None:
    blocks = list(resample_counts(5000, 1))
    assert len(blocks) > 1
    assert sum(map(len, blocks)) == RESAMPLES
    assert all((block.sum(axis=1) == 5000).all() for block in blocks)
    assert None not in ends(overall(*draw(12, 5000, 2)))


@pytest.mark.parametrize("kind", ["thresholded", "rare tokens"])
def test_intervals_cover_the_true_score(kind: str) -> None:
    """A short form of `tests.load.simulation_intervals`, whose figures docs/scoring.md has.

    The shares of so few data sets have a standard error of 1.1 %; plain quantiles cover 84 %.
    """
    found = coverage(KINDS[kind], data_sets=400, population=20_000)
    assert (found.without == 0).all()
    assert (found.shares >= 0.9).all(), found
    assert (found.shares <= 0.985).all(), found
