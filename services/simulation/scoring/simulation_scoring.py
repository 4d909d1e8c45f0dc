"""Score an explanation: simulate, calibrate, simulate again on other sequences, compare."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.simulation.calibration.calibrated_simulator import calibrated
from services.simulation.calibration.calibrations import (
    Calibration,
    CalibrationKind,
    fit_calibration,
)
from services.simulation.errors import InvalidInput
from services.simulation.scores.simulation_scores import ScoreTable, ScoreTriple, score_sequences
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit
from services.simulation.sequence_simulation import SequenceSimulation
from services.simulation.simulators.interface import (
    DEFAULT_MIN_COVERAGE,
    SimulatedSequence,
    SimulationCost,
    Simulator,
    ValidityReport,
)
from shared.errors import FailedPrecondition

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ScoringTask:
    """An explanation to score, and how."""

    explanation: str
    split: ScoringSplit
    calibration_kind: CalibrationKind
    seed: int = 0
    """Of random choices; this way of scoring makes none, and a score only repeats it."""
    min_coverage: float = DEFAULT_MIN_COVERAGE
    """Smallest share of tokens that must get a distribution."""


@dataclass(frozen=True)
class ScoringProgress:
    """How far a task has come, in sequences simulated or questions judged."""

    completed: int
    total: int
    stage: str
    """`simulate_calibration`, `fit`, `simulate`, `judge` or `score`."""
    cost: SimulationCost = field(default_factory=SimulationCost)
    """Of all that was simulated or judged so far."""


@dataclass(frozen=True)
class Provenance:
    """Where a score comes from."""

    simulator: str
    simulator_kind: str
    simulator_model: str
    prompt_version: str
    calibration: Calibration
    fitted_tokens: int
    dataset: str
    seed: int
    calibration_sequences: int
    scored_sequences: int
    cost: SimulationCost


@dataclass(frozen=True, eq=False)
class ScoredExplanation:
    """An explanation's score, with all that it was computed from."""

    explanation: str
    simulations: tuple[SequenceSimulation, ...]
    """Calibrated, one a scored sequence."""
    reports: tuple[ValidityReport, ...]
    true_activations: tuple[FloatArray, ...]
    scores: ScoreTable
    """Of each scored sequence, and of all concatenated."""
    uncalibrated_scores: ScoreTriple
    provenance: Provenance


async def score_explanation(
    task: ScoringTask, simulator: Simulator
) -> AsyncGenerator[ScoringProgress | ScoredExplanation, None]:
    """Progress while it runs, then the result.

    Tokens without a distribution take no part in calibration and scores. Tokens whose true
    activation isn't finite take no part in the calibration, and leave the scores of their
    sequences, and of all together, undefined.

    Raises:
        FailedPrecondition: there is nothing to score or to calibrate on, or too few tokens got a
            distribution.
        InvalidInput, ResourceExhausted, Unavailable: as the simulator says.
    """
    split, kind = task.split, task.calibration_kind
    fits = kind is not CalibrationKind.NONE
    calibration_set = split.calibration if fits else LabeledSequences()
    _check(split, calibration_set, kind)
    total = len(calibration_set) + len(split.scored)
    done = 0
    spent = SimulationCost()

    fitted_on: list[SimulatedSequence] = []
    if fits:
        yield ScoringProgress(0, total, "simulate_calibration")
        async with aclosing(
            simulator.simulate(task.explanation, calibration_set.tokens)
        ) as simulated:
            async for result in simulated:
                fitted_on.append(result)
                done += 1
                spent += result.cost
                yield ScoringProgress(done, total, "simulate_calibration", spent)
        _total_report(fitted_on).require(task.min_coverage)
        yield ScoringProgress(done, total, "fit", spent)
    # Hundreds of thousands of tokens take a while, in which others should be answered.
    calibration, fitted_tokens = await asyncio.to_thread(_fit, kind, fitted_on, calibration_set)

    yield ScoringProgress(done, total, "simulate", spent)
    results: list[SimulatedSequence] = []
    async with aclosing(simulator.simulate(task.explanation, split.scored.tokens)) as simulated:
        async for result in simulated:
            results.append(result)
            done += 1
            yield ScoringProgress(done, total, "simulate", spent)
    _total_report(results).require(task.min_coverage)
    yield ScoringProgress(done, total, "score", spent)

    yield await asyncio.to_thread(
        _scored, task, simulator, fitted_on, calibration, fitted_tokens, results
    )


def _scored(
    task: ScoringTask,
    simulator: Simulator,
    fitted_on: Sequence[SimulatedSequence],
    calibration: Calibration,
    fitted_tokens: int,
    results: Sequence[SimulatedSequence],
) -> ScoredExplanation:
    split = task.split
    raw = tuple(result.simulation() for result in results)
    simulations = tuple(calibrated(simulation, calibration) for simulation in raw)
    true, expected, lengths = _comparable(split.scored, simulations)
    _, uncalibrated, _ = _comparable(split.scored, raw)
    return ScoredExplanation(
        explanation=task.explanation,
        simulations=simulations,
        reports=tuple(result.report for result in results),
        true_activations=split.scored.activations,
        scores=score_sequences(true, expected, lengths),
        uncalibrated_scores=score_sequences(true, uncalibrated, lengths).overall,
        provenance=Provenance(
            simulator=simulator.name,
            simulator_kind=simulator.kind,
            simulator_model=simulator.model,
            prompt_version=simulator.prompt_version,
            calibration=calibration,
            fitted_tokens=fitted_tokens,
            dataset=split.dataset,
            seed=task.seed,
            calibration_sequences=len(fitted_on),
            scored_sequences=len(results),
            cost=sum((result.cost for result in (*fitted_on, *results)), SimulationCost()),
        ),
    )


def _check(split: ScoringSplit, calibration_set: LabeledSequences, kind: CalibrationKind) -> None:
    source = f"the record of {split.dataset}" if split.dataset else "the request"
    if not len(split.scored):
        raise FailedPrecondition(
            f"{source} has no sequences to score: a record needs at least four top or three "
            "random ones",
            field="" if split.dataset else "sequences.scored_sequences",
            reason="NO_SEQUENCES_TO_SCORE",
        )
    if kind is not CalibrationKind.NONE and not len(calibration_set):
        raise FailedPrecondition(
            f"{source} has no sequences to fit a {kind} calibration on; give some, or choose none",
            field="" if split.dataset else "sequences.calibration_sequences",
            reason="NO_SEQUENCES_TO_CALIBRATE",
        )


def _total_report(results: Sequence[SimulatedSequence]) -> ValidityReport:
    return sum((result.report for result in results), ValidityReport())


def _fit(
    kind: CalibrationKind, results: Sequence[SimulatedSequence], labeled: LabeledSequences
) -> tuple[Calibration, int]:
    """The calibration, and how many tokens it was fitted on."""
    if kind is CalibrationKind.NONE:
        return fit_calibration(kind, [], []), 0
    true, simulated, _ = _comparable(labeled, [result.simulation() for result in results])
    usable = np.isfinite(true)
    if not usable.any():
        raise InvalidInput(
            "no calibration sequence has a token with a finite true activation and a distribution",
            field="calibration_sequences",
            reason="NO_CALIBRATION_TOKENS",
        )
    return fit_calibration(kind, simulated[usable], true[usable]), int(usable.sum())


def _comparable(
    labeled: LabeledSequences, simulations: Sequence[SequenceSimulation]
) -> tuple[FloatArray, FloatArray, list[int]]:
    """True and expected activations of the tokens that got a distribution, and lengths."""
    true = np.concatenate([np.zeros(0), *labeled.activations])
    expected = np.concatenate([np.zeros(0), *(s.expected_activations for s in simulations)])
    predicted = ~np.isnan(expected)
    if predicted.all():
        return true, expected, [len(tokens) for tokens in labeled.tokens]
    lengths = [int((~np.isnan(s.expected_activations)).sum()) for s in simulations]
    return true[predicted], expected[predicted], lengths
