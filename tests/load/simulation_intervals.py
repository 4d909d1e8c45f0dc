"""How often intervals of scores hold the score that they are an interval of, by kind of activation.

`python -m tests.load.simulation_intervals` draws 2,000 data sets of 50 sequences of each kind,
computes their intervals, and looks in how many of them the score of 100,000 sequences lies. It
prints Markdown tables, also for two better known ways of making intervals, and of judgements.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from services.simulation.scores.classification import classification_scores
from services.simulation.scores.resamples import resample_counts
from services.simulation.scores.simulation_scores import Score, score_sequences

FloatArray = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[FloatArray, FloatArray]]
"""True and expected activations [sequences, tokens] of so many sequences."""
Intervals = Callable[[FloatArray, FloatArray, int], FloatArray]
"""Ends [3, 2] from true and expected activations and a seed."""

DATA_SETS, SEQUENCES, POPULATION = 2_000, 50, 100_000
TOKENS = 64
SCORES = ("correlation", "R squared", "absolute deviation explained")


@dataclass(frozen=True)
class Coverage:
    """Of the three scores: the share of data sets whose interval holds the true score."""

    truth: FloatArray
    shares: FloatArray
    """[3], among the data sets that have an interval."""
    without: FloatArray
    """[3], the share of data sets that have none."""


def scored(
    true: FloatArray, expected: FloatArray, interval_seed: int | None = None
) -> tuple[Score, Score, Score]:
    """The overall scores of sequences of one length."""
    lengths = np.full(len(true), true.shape[1])
    overall = score_sequences(true.ravel(), expected.ravel(), lengths, interval_seed).overall
    return overall.correlation, overall.rsquared, overall.absolute_dev_explained


def served_intervals(true: FloatArray, expected: FloatArray, seed: int) -> FloatArray:
    """The intervals that scores are given."""
    ends = np.full((3, 2), np.nan)
    for kind, score in enumerate(scored(true, expected, seed)):
        if score.interval is not None:
            ends[kind] = score.interval.low, score.interval.high
    return ends


def percentile_intervals(true: FloatArray, expected: FloatArray, seed: int) -> FloatArray:
    """Quantiles of the resamples as they are."""
    _, resampled = _resampled(true, expected, seed)
    ends: FloatArray = np.quantile(resampled, [0.025, 0.975], axis=0).T
    return ends


def bca_intervals(true: FloatArray, expected: FloatArray, seed: int) -> FloatArray:
    """Quantiles corrected for bias and skewness, as `scipy.stats.bootstrap` does by default."""
    sums, resampled = _resampled(true, expected, seed)
    total = sums.sum(axis=0)
    estimate, left_out = _of_sums(total), _of_sums(total - sums)
    bias = norm.ppf(np.clip((resampled < estimate).mean(axis=0), 1e-3, 1 - 1e-3))
    away = left_out.mean(axis=0) - left_out
    skew = (away**3).sum(axis=0) / (6 * (away**2).sum(axis=0) ** 1.5)
    ends = np.empty((3, 2))
    for side, tail in enumerate((0.025, 0.975)):
        shifted = bias + norm.ppf(tail)
        for kind, level in enumerate(norm.cdf(bias + shifted / (1 - skew * shifted))):
            ends[kind, side] = np.quantile(resampled[:, kind], level)
    return ends


def coverage(
    draw: Draw,
    data_sets: int = DATA_SETS,
    sequences: int = SEQUENCES,
    population: int = POPULATION,
    seed: int = 0,
    intervals: Intervals = served_intervals,
) -> Coverage:
    """Draw data sets and hold their intervals against the scores of a population."""
    whole = scored(*draw(np.random.default_rng(seed), population))
    truth = np.asarray([score.value for score in whole], dtype=np.float64)
    ends = np.full((data_sets, 3, 2), np.nan)
    for position in range(data_sets):
        true, expected = draw(np.random.default_rng([seed, 1, position]), sequences)
        ends[position] = intervals(true, expected, position)
    held = (ends[..., 0] <= truth) & (truth <= ends[..., 1])
    known = np.isfinite(ends).all(axis=2)
    return Coverage(truth, held.sum(axis=0) / known.sum(axis=0), 1 - known.mean(axis=0))


def _resampled(true: FloatArray, expected: FloatArray, seed: int) -> tuple[FloatArray, FloatArray]:
    """Sums by sequence, and the scores [resamples, 3] of resamples."""
    error = true - expected
    columns = (
        np.ones_like(true),
        true,
        expected,
        true * true,
        expected * expected,
        true * expected,
        error * error,
        np.abs(true),
        np.abs(error),
    )
    sums = np.stack([column.sum(axis=1) for column in columns], axis=1)
    counts = np.concatenate(list(resample_counts(len(sums), seed)))
    return sums, _of_sums(counts @ sums)


def _of_sums(sums: FloatArray) -> FloatArray:
    count, true, expected, true_2, expected_2, product, error_2, size, error = np.moveaxis(
        sums, -1, 0
    )
    norms = (true_2 - true**2 / count) * (expected_2 - expected**2 / count)
    correlation = (product - true * expected / count) / np.sqrt(norms)
    return np.stack([correlation, 1 - error_2 / true_2, 1 - error / size], axis=-1)


def bursts(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    """Log-normal activations at 5 % of the tokens, many in some sequences and none in others."""
    on = rng.random((n, TOKENS)) < rng.beta(0.6, 12, n)[:, np.newaxis]
    true = np.where(on, rng.lognormal(0, 0.8, (n, TOKENS)), 0.0)
    seen = rng.random((n, TOKENS)) < np.where(on, 0.75, 0.02)
    guessed = np.where(on, true, 1.0) ** 0.6 * rng.lognormal(0, 0.4, (n, TOKENS))
    return true, np.where(seen, 0.6 * guessed + 0.2, 0.02)


def thresholded(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    """What of a Gaussian lies over a threshold, with sequences that have more of it."""
    drive = rng.normal(size=(n, TOKENS)) + 0.7 * rng.normal(size=(n, 1))
    noise = rng.normal(size=(n, TOKENS))
    return np.maximum(drive - 1.8, 0), np.maximum(0.8 * drive + 0.5 * noise - 1.2, 0)


def rare_tokens(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    """4 % of the tokens, predicted well, on a scale that isn't right."""
    on = rng.random((n, TOKENS)) < 0.04
    noise = rng.normal(size=(n, TOKENS))
    true = np.where(on, rng.gamma(2, 1, (n, TOKENS)), 0.0) + 0.02 * np.abs(noise)
    rounded = np.round(np.minimum(true * 1.3, 10)) + 0.5 * rng.normal(size=(n, TOKENS))
    return true, 0.75 * np.where(on, rounded, 0.1 * rng.random((n, TOKENS)))


def top_and_random(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    """A third of the sequences have one peak, the others next to nothing, as splits of records."""
    top, rows = rng.random(n) < 1 / 3, np.arange(n)
    true = np.maximum(0.3 * rng.normal(size=(n, TOKENS)) - 0.3, 0)
    peak, elsewhere = rng.integers(0, TOKENS, (2, n))
    true[rows, peak] += np.where(top, rng.gamma(6, 1, n), rng.random(n) < 0.1)
    expected = 0.15 * rng.random((n, TOKENS))
    expected[rows, peak] += np.where(top & (rng.random(n) < 0.8), rng.gamma(4, 1.2, n), 0)
    expected[rows, elsewhere] += (rng.random(n) < 0.25) * rng.gamma(3, 1, n)
    return true, expected


def pareto(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    """Activations with a tail of power 4.5 at 3 % of the tokens."""
    on = rng.random((n, TOKENS)) < 0.03
    true = np.where(on, rng.pareto(4.5, (n, TOKENS)) + 0.5, 0.0)
    seen = rng.random((n, TOKENS)) < 0.85
    false = np.where(rng.random((n, TOKENS)) < 0.01, 1.0, 0.0)
    return true, np.where(seen, true, 0.0) * rng.lognormal(0, 0.3, (n, TOKENS)) + false


def hardly_predicted(rng: np.random.Generator, n: int) -> tuple[FloatArray, FloatArray]:
    """Bursts again, by an explanation that says next to nothing of them."""
    true, _ = bursts(rng, n)
    said = rng.random((n, TOKENS)) < 0.1 * (1 + (true > 0))
    return true, 0.3 * np.where(said, rng.gamma(2, 0.5, (n, TOKENS)), 0.05)


KINDS: dict[str, Draw] = {
    "bursts": bursts,
    "thresholded": thresholded,
    "rare tokens": rare_tokens,
    "top and random": top_and_random,
    "pareto": pareto,
    "hardly predicted": hardly_predicted,
}
METHODS: dict[str, Intervals] = {
    "bootstrap-t": served_intervals,
    "percentile": percentile_intervals,
    "BCa": bca_intervals,
}


def judgements(
    rng: np.random.Generator, sequences: int, a_sequence: int, apart: float
) -> tuple[NDArray[np.bool_], FloatArray, NDArray[np.int64]]:
    """Labels, probabilities and sequences of judgements, of which those of a sequence are alike."""
    groups = np.repeat(np.arange(sequences), a_sequence)
    labels = rng.permuted(np.arange(len(groups)) % 2 == 0)
    alike = 0.5 * rng.normal(size=sequences)[groups] * (a_sequence > 1)
    logits = apart * (labels - 0.5) + alike + rng.normal(size=len(groups))
    return labels, 1 / (1 + np.exp(-logits)), groups


def judgement_coverage(
    sequences: int, a_sequence: int, apart: float, data_sets: int = DATA_SETS, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """True balanced accuracy and ROC AUC, and the shares of intervals that hold them."""
    labels, likely, groups = judgements(np.random.default_rng(seed), 20_000, a_sequence, apart)
    # Their interval isn't looked at, and one sequence makes none.
    scores = classification_scores(labels, likely, [0] * len(groups))
    truth = np.asarray([scores.balanced_accuracy.value, scores.roc_auc.value], dtype=np.float64)
    held = np.zeros(2)
    for position in range(data_sets):
        rng = np.random.default_rng([seed, 2, position])
        labels, likely, groups = judgements(rng, sequences, a_sequence, apart)
        scores = classification_scores(labels, likely, groups.tolist(), position)
        for kind, score in enumerate((scores.balanced_accuracy, scores.roc_auc)):
            interval = score.interval
            held[kind] += interval is not None and interval.low <= truth[kind] <= interval.high
    return truth, held / data_sets


def measure(data_sets: int = DATA_SETS) -> list[str]:
    """The tables."""
    lines = [
        f"{data_sets:,} data sets of {SEQUENCES} sequences of {TOKENS} tokens, truth from "
        f"{POPULATION:,} sequences; % of the intervals that hold it:",
        "",
        "| activations | true scores | method | " + " | ".join(SCORES) + " |",
        "|---|---|---|---|---|---|",
    ]
    for name, draw in KINDS.items():
        for method, intervals in METHODS.items():
            found = coverage(draw, data_sets, intervals=intervals)
            shares = " | ".join(f"{100 * share:.1f}" for share in found.shares)
            truth = ", ".join(f"{value:.2f}" for value in found.truth)
            lines.append(f"| {name} | {truth} | {method} | {shares} |")
    lines += [
        "",
        "With fewer sequences (below 20 by Student's t):",
        "",
        "| activations | sequences | " + " | ".join(SCORES) + " | without |",
        "|---|---|---|---|---|---|",
    ]
    for name, draw in KINDS.items():
        for sequences in (7, 10, 20):
            found = coverage(draw, data_sets, sequences)
            shares = " | ".join(f"{100 * share:.1f}" for share in found.shares)
            lines.append(f"| {name} | {sequences} | {shares} | {100 * found.without.max():.1f} |")
    lines += [
        "",
        f"{data_sets:,} sets of judgements; % of the intervals that hold the true score:",
        "",
        "| sequences | judgements a sequence | true scores | balanced accuracy | ROC AUC |",
        "|---|---|---|---|---|",
    ]
    for sequences, a_sequence in ((20, 1), (50, 1), (10, 4), (50, 4)):
        for apart in (0.0, 1.5, 4.0):
            values, held = judgement_coverage(sequences, a_sequence, apart, data_sets)
            lines.append(
                f"| {sequences} | {a_sequence} | {values[0]:.2f}, {values[1]:.2f} | "
                f"{100 * held[0]:.1f} | {100 * held[1]:.1f} |"
            )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_sets", type=int, nargs="?", default=DATA_SETS)
    print("\n".join(measure(parser.parse_args().data_sets)))
