"""How often the intervals of scores cover the true score, on the planted model's language.

`python -m tests.load.simulation_coverage` draws 2,000 data sets of 50 sequences for each of several
explanations, some of which are only partly right, and prints how many of the 95 % intervals hold
the score of 100,000 other sequences. The neurons' activations are those of `tests.planted.meaning`,
which a test compares with the planted model's own.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.calibration.calibrations import CalibrationKind, fit_calibration
from services.simulation.scores.simulation_scores import score_sequences
from services.simulation.sequence_simulation import NORMALIZED_VALUES
from tests.planted.meaning import NEURONS, Meaning, sentences
from tests.planted.oracle import OFF, ON

DATA_SETS, SEQUENCES, TOKENS = 2000, 50, 24
POPULATION = 100_000
CALIBRATION_SEQUENCES = 200

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A neuron, and what an explanation of it says, which may be less or something else."""

    name: str
    neuron: Meaning
    explained: Meaning
    noise: float = 0.0
    """Standard deviation of what a simulator adds to each expected value."""


_METALS, _RIVER, _GOLD = NEURONS[0][1], NEURONS[0][3], NEURONS[1][4]
CASES = (
    Case("right, but for how strongly each word counts", _METALS, _METALS),
    Case("three of five words", _METALS, Meaning("three", _METALS.words[:3])),
    Case("the word, not what stands before it", _GOLD, Meaning("'gold'", _GOLD.words)),
    Case("right, by a noisy simulator", _RIVER, _RIVER, noise=1.5),
    Case("wrong", _METALS, NEURONS[1][3]),
)


@dataclass(frozen=True)
class Coverage:
    """Shares of intervals that hold the truth."""

    true_correlation: float
    true_r_squared: float
    correlation: float
    r_squared: float
    deviation: float
    without_interval: int
    """Data sets with a score that has none."""


def drawn(case: Case, rng: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """True and simulated activations [count, tokens], the latter on the scale 0 to 10."""
    words = sentences(rng, count, TOKENS)
    on, off = float(ON @ NORMALIZED_VALUES), float(OFF @ NORMALIZED_VALUES)
    simulated = np.where(case.explained.of_numbers(words) > 0, on, off)
    if case.noise:
        simulated = np.clip(simulated + case.noise * rng.normal(size=simulated.shape), 0, 10)
    return case.neuron.of_numbers(words), simulated


def coverage(
    case: Case, *, data_sets: int = DATA_SETS, population: int = POPULATION, seed: int = 0
) -> Coverage:
    """Calibrate once, on sequences of their own, and score every data set with it."""
    rng = np.random.default_rng(seed)
    true, simulated = drawn(case, rng, CALIBRATION_SEQUENCES)
    calibration = fit_calibration(CalibrationKind.LINEAR, simulated.ravel(), true.ravel())
    true, simulated = drawn(case, rng, population)
    whole = score_sequences(
        true.ravel(), calibration.apply(simulated.ravel()), np.full(population, TOKENS)
    ).overall
    truth = [whole.correlation.value, whole.rsquared.value, whole.absolute_dev_explained.value]
    lengths = np.full(SEQUENCES, TOKENS)
    covered, undefined = np.zeros(3), 0
    for number in range(data_sets):
        true, simulated = drawn(case, rng, SEQUENCES)
        scores = score_sequences(
            true.ravel(), calibration.apply(simulated.ravel()), lengths, interval_seed=number
        ).overall
        intervals = [
            score.interval
            for score in (scores.correlation, scores.rsquared, scores.absolute_dev_explained)
        ]
        undefined += any(interval is None for interval in intervals)
        covered += [
            interval is not None and interval.low <= value <= interval.high
            for interval, value in zip(intervals, truth, strict=True)
        ]
    shares = covered / data_sets
    return Coverage(truth[0], truth[1], *(float(share) for share in shares), undefined)


def table(data_sets: int = DATA_SETS, population: int = POPULATION) -> list[str]:
    """Markdown."""
    lines = [
        f"{data_sets:,} data sets of {SEQUENCES} sequences of {TOKENS} tokens each; truth: "
        f"{population:,} sequences; linear calibration fitted on {CALIBRATION_SEQUENCES} others.",
        "",
        "| explanation | true correlation | true R squared | covered: correlation | R squared | "
        "absolute deviation | without interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        found = coverage(case, data_sets=data_sets, population=population)
        lines.append(
            f"| {case.name} | {found.true_correlation:.3f} | {found.true_r_squared:.3f} | "
            f"{found.correlation:.1%} | {found.r_squared:.1%} | {found.deviation:.1%} | "
            f"{found.without_interval} |"
        )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-sets", type=int, default=DATA_SETS)
    parser.add_argument("--population", type=int, default=POPULATION)
    arguments = parser.parse_args()
    print("\n".join(table(arguments.data_sets, arguments.population)))
