"""Confidence intervals of the three scores of simulations, by a bootstrap over sequences.

Tokens of one sequence aren't independent, so sequences are drawn, whole. Every score is a function
of sums over sequences: a resample is one row of a matrix product, and nothing loops over resamples.

The interval is bootstrap-t (studentised). Scores are first taken to a scale on which their spread
hardly depends on their value: artanh of a correlation r, log of the share that the other two leave
unexplained. There, with `infinitesimal jackknife` standard errors s of the resamples,

    q = quantiles of (resample - score) / s of the resample
    interval = score - q * (jackknife standard error of the score)

Of fewer than 20 sequences, quantiles of resamples are mostly chance, and can be absurdly far out:
there q are the quantiles of Student's t with one degree of freedom less than sequences.

Quantiles of the resamples alone, or corrected for bias and skewness (BCa), cover less than they
claim where a few sequences hold most of the activation (docs/scoring.md has the figures).
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from services.simulation.scores.moments import Moments
from services.simulation.scores.resamples import CONFIDENCE, MIN_DEFINED, resample_counts

FloatArray = NDArray[np.float64]

FEW_SEQUENCES = 20
"""Of fewer, intervals aren't taken from resamples."""

_PERFECT = 1e-12
"""A correlation this close to 1 or -1 is one but for rounding."""

_PAIRS = tuple(combinations_with_replacement(range(6), 2))
_FIRST, _SECOND = (np.asarray(side) for side in zip(*_PAIRS, strict=True))
_TIMES = np.where(np.equal(_FIRST, _SECOND), 1.0, 2.0)


def interval_method(sequences: int) -> str:
    """What intervals of the scores of so many sequences are called."""
    return "student-t" if sequences < FEW_SEQUENCES else "bootstrap-t"


def overall_intervals(moments: Moments, seed: int) -> FloatArray:
    """Lower and upper ends [3, 2] of correlation, R squared and absolute deviation explained.

    `moments` are those of n sequences, none empty. NaN where there is no interval: one sequence,
    a score that is undefined in more than 5 % of the resamples, or sums that leave the range in
    which doubles keep their digits. A perfect score has an interval of no width.
    """
    ends = np.full((3, 2), np.nan)
    sequences = len(moments.counts)
    if sequences < 2:
        return ends
    with np.errstate(all="ignore"):
        return _intervals(moments, ends, seed)


def _intervals(moments: Moments, ends: FloatArray, seed: int) -> FloatArray:
    sequences = len(moments.counts)
    features = _features(moments)
    totals = features.sum(axis=0)[np.newaxis]
    estimates = _transformed(totals)[:, 0]
    columns = np.concatenate([features, _products(features)], axis=1)
    sums = np.concatenate([counts @ columns for counts in resample_counts(sequences, seed)])
    errors = _standard_errors(sums, sequences)
    pivots = (_transformed(sums[:, : features.shape[1]]) - estimates[:, np.newaxis]) / errors
    left_out = _transformed(totals - features)
    deviations = left_out - left_out.mean(axis=1, keepdims=True)
    spread = np.sqrt((sequences - 1) / sequences * np.square(deviations).sum(axis=1))
    tail = (1 - CONFIDENCE) / 2
    for kind in range(3):
        defined = pivots[kind][np.isfinite(pivots[kind])]
        if len(defined) >= MIN_DEFINED * pivots.shape[1]:
            if sequences < FEW_SEQUENCES:
                high = float(student.ppf(1 - tail, sequences - 1))
                low = -high
            else:
                low, high = _quantiles(defined, tail)
            ends[kind] = estimates[kind] - high * spread[kind], estimates[kind] - low * spread[kind]
    return _scores(ends, moments, totals)


def _features(moments: Moments) -> FloatArray:
    """What the scores are functions of, summed by sequence [n, 10], each near 1 for a token.

    Tokens; t, p, t^2, p^2 and t p about the means of all tokens, in standard deviations; squared
    error, t^2, absolute error and |t|, as shares of their totals.
    """
    counts = moments.counts.astype(np.float64)
    total = counts.sum()
    true = moments.true - counts * (moments.true.sum() / total)
    expected = moments.expected - counts * (moments.expected.sum() / total)
    true_squared = moments.true_deviation + true * true / counts
    expected_squared = moments.expected_deviation + expected * expected / counts
    product = moments.codeviation + true * expected / counts
    true_scale = np.sqrt(true_squared.sum() / total)
    expected_scale = np.sqrt(expected_squared.sum() / total)
    shares = np.stack(
        [
            moments.error_squared,
            moments.true_squared,
            moments.error_absolute,
            moments.true_absolute,
        ]
    )
    shares *= total / shares.sum(axis=1, keepdims=True)
    return np.stack(
        [
            counts,
            true / true_scale,
            expected / expected_scale,
            true_squared / true_scale**2,
            expected_squared / expected_scale**2,
            product / (true_scale * expected_scale),
            *shares,
        ],
        axis=1,
    )


def _products(features: FloatArray) -> FloatArray:
    """Products of features [n, 27] that standard errors need, summed over resamples."""
    about, shares = features[:, :6], features[:, 6:]
    squares = shares * shares
    return np.concatenate(
        [
            about[:, _FIRST] * about[:, _SECOND] * _TIMES,
            squares[:, :2],
            shares[:, :1] * shares[:, 1:2],
            squares[:, 2:],
            shares[:, 2:3] * shares[:, 3:],
        ],
        axis=1,
    )


def _transformed(sums: FloatArray) -> FloatArray:
    """Scores [3, m] on their scale from sums [m, 10]; the shares' constant factors cancel."""
    counts, true, expected, true_squared, expected_squared, product = sums[:, :6].T
    squared_error, squared, absolute_error, absolute = sums[:, 6:].T
    norms = (true_squared - true * true / counts) * (
        expected_squared - expected * expected / counts
    )
    correlation = (product - true * expected / counts) / np.sqrt(norms)
    correlation[np.abs(correlation) > 1 - _PERFECT] = np.nan
    return np.stack(
        [
            np.arctanh(correlation),
            np.log(squared_error / squared),
            np.log(absolute_error / absolute),
        ]
    )


def _standard_errors(sums: FloatArray, sequences: int) -> FloatArray:
    """Of `_transformed` of resamples [3, m]: the spread of what each sequence contributes."""
    counts, true, expected, true_squared, expected_squared, product = sums[:, :6].T
    true_mean, expected_mean = true / counts, expected / counts
    true_deviation = true_squared - true * true_mean
    expected_deviation = expected_squared - expected * expected_mean
    norm = np.sqrt(true_deviation * expected_deviation)
    correlation = (product - true * expected_mean) / norm
    of_true = -correlation / (2 * true_deviation)
    of_expected = -correlation / (2 * expected_deviation)
    # Derivatives of the correlation by the six sums.
    slopes = np.stack(
        [
            of_true * true_mean**2
            + of_expected * expected_mean**2
            + true_mean * expected_mean / norm,
            -2 * of_true * true_mean - expected_mean / norm,
            -2 * of_expected * expected_mean - true_mean / norm,
            of_true,
            of_expected,
            1 / norm,
        ]
    )
    products = sums[:, 10:].T
    variances = np.empty((3, len(sums)))
    variances[0] = (slopes[_FIRST] * slopes[_SECOND] * products[:21]).sum(axis=0) / (
        1 - correlation**2
    ) ** 2
    for kind, (above, below) in enumerate(((6, 7), (8, 9))):
        own = products[21 + 3 * kind : 24 + 3 * kind]
        top, bottom = sums[:, above], sums[:, below]
        variances[1 + kind] = own[0] / top**2 - 2 * own[2] / (top * bottom) + own[1] / bottom**2
    # Rounding leaves something where all drawn sequences contribute the same.
    variances[variances < 1e-20] = np.nan
    return np.sqrt(variances * (sequences / (sequences - 1)))


def _quantiles(values: FloatArray, tail: float) -> tuple[float, float]:
    """The `tail` and the 1 - `tail` quantile, as far from the ends as from each other's."""
    cut = round(tail * (len(values) - 1))
    ordered = np.partition(values, (cut, len(values) - 1 - cut))
    return float(ordered[cut]), float(ordered[len(values) - 1 - cut])


def _scores(ends: FloatArray, moments: Moments, totals: FloatArray) -> FloatArray:
    """Ends [3, 2] as scores, from their scale."""
    unexplained = [
        moments.error_squared.sum() / moments.true_squared.sum(),
        moments.error_absolute.sum() / moments.true_absolute.sum(),
    ]
    result = np.full((3, 2), np.nan)
    result[0] = np.tanh(ends[0])
    true_squared, expected_squared, product = totals[0, 3:6]
    correlation = product / np.sqrt(true_squared * expected_squared)
    if abs(correlation) > 1 - _PERFECT:
        result[0] = np.clip(correlation, -1, 1)
    for kind, share in enumerate(unexplained, start=1):
        # The least unexplained is the highest score.
        result[kind] = 1.0 if share == 0 else 1 - share * np.exp(ends[kind][::-1])
    return result
