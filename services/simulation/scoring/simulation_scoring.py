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
from services.simulation.calibration.content import CachedFit, CalibrationCache, content_key
from services.simulation.calibration.fitted import FittedCalibration, sequence_hash
from services.simulation.errors import InvalidInput
from services.simulation.scores.intervals import FEW_SEQUENCES, interval_method
from services.simulation.scores.resamples import RESAMPLES
from services.simulation.scores.simulation_scores import ScoreTable, ScoreTriple, score_sequences
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit
from services.simulation.sequence_simulation import SequenceSimulation
from services.simulation.simulators.interface import (
    DEFAULT_MIN_COVERAGE,
    SimulatedSequence,
    SimulationCost,
    Simulator,
    ValidityReport,
    check_request,
)
from shared.errors import FailedPrecondition, ResourceExhausted

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ScoringTask:
    """An explanation to score, and how."""

    explanation: str
    split: ScoringSplit
    calibration_kind: CalibrationKind
    seed: int = 0
    """Of the resamples of intervals; nothing else of this way of scoring is random."""
    min_coverage: float = DEFAULT_MIN_COVERAGE
    """Smallest share of tokens that must get a distribution."""
    calibration: FittedCalibration | None = None
    """Applied instead of fitting one; `calibration_kind` is not looked at then."""
    calibration_field: str = "calibration"
    """What errors call it."""


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
    fitted: FittedCalibration
    dataset: str
    seed: int
    calibration_reused: bool
    """Whether nothing was simulated to fit it: it was given, or fitted for an earlier score."""
    scored_sequences: int
    cost: SimulationCost

    @property
    def interval_method(self) -> str:
        return interval_method(self.scored_sequences)

    @property
    def interval_resamples(self) -> int:
        """0 where resamples only tell whether there is an interval."""
        return RESAMPLES if self.scored_sequences >= FEW_SEQUENCES else 0

    @property
    def calibration(self) -> Calibration:
        return self.fitted.calibration

    @property
    def fitted_tokens(self) -> int:
        return self.fitted.tokens

    @property
    def calibration_sequences(self) -> int:
        """Sequences that the calibration was fitted on, as far as they are known."""
        return len(self.fitted.sequence_hashes)


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
    task: ScoringTask, simulator: Simulator, cache: CalibrationCache | None = None
) -> AsyncGenerator[ScoringProgress | ScoredExplanation, None]:
    """Progress while it runs, then the result.

    Tokens without a distribution take no part in calibration and scores. Tokens whose true
    activation isn't finite take no part in the calibration, and leave the scores of their
    sequences, and of all together, undefined. A calibration that `cache` has is not fitted again.

    Raises:
        FailedPrecondition: there is nothing to score or to calibrate on, or too few tokens got a
            distribution.
        InvalidInput: the calibration that was given was fitted on a sequence to be scored.
        InvalidInput, ResourceExhausted, Unavailable: as the simulator says.
    """
    split = task.split
    fit = _known_fit(task, simulator, cache)
    to_fit_on = split.calibration if fit is None else LabeledSequences()
    _check_sequences(task, split.scored, "scored_sequences")
    if fit is None:
        _check_sequences(task, to_fit_on, "calibration_sequences")
        _require_calibration_tokens(
            any(np.isfinite(values).any() for values in to_fit_on.activations), split
        )
    total = len(to_fit_on) + len(split.scored)
    done = 0
    spent = SimulationCost()

    if fit is None:
        fitted_on: list[SimulatedSequence] = []
        yield ScoringProgress(0, total, "simulate_calibration")
        async with aclosing(simulator.simulate(task.explanation, to_fit_on.tokens)) as simulated:
            async for result in simulated:
                fitted_on.append(result)
                done += 1
                spent += result.cost
                yield ScoringProgress(done, total, "simulate_calibration", spent)
        report = _total_report(fitted_on)
        report.require(task.min_coverage)
        yield ScoringProgress(done, total, "fit", spent)
        # Hundreds of thousands of tokens take a while, in which others should be answered.
        fitted = await asyncio.to_thread(_fit, task.calibration_kind, fitted_on, split)
        fit = CachedFit(fitted, report)
        if cache is not None:
            cache.put(_key(task, simulator), fit)
    fit.report.require(task.min_coverage)

    yield ScoringProgress(done, total, "simulate", spent)
    results: list[SimulatedSequence] = []
    async with aclosing(simulator.simulate(task.explanation, split.scored.tokens)) as simulated:
        async for result in simulated:
            results.append(result)
            done += 1
            spent += result.cost
            yield ScoringProgress(done, total, "simulate", spent)
    _total_report(results).require(task.min_coverage)
    yield ScoringProgress(done, total, "score", spent)

    reused = not len(to_fit_on) and fit.fitted.calibration.kind is not CalibrationKind.NONE
    yield await asyncio.to_thread(_scored, task, simulator, fit.fitted, reused, results, spent)


def _known_fit(
    task: ScoringTask, simulator: Simulator, cache: CalibrationCache | None
) -> CachedFit | None:
    """The calibration, where nothing needs to be simulated for it.

    Raises:
        FailedPrecondition, InvalidInput: as `score_explanation` says.
    """
    kind, given = task.calibration_kind, task.calibration
    if given is not None or kind is CalibrationKind.NONE:
        _check(task.split, LabeledSequences(), CalibrationKind.NONE)
        if given is None:
            given = FittedCalibration(fit_calibration(kind, [], []))
        given.refuse_fitted(task.split.scored.tokens, task.calibration_field)
        return CachedFit(given, ValidityReport())
    _check(task.split, task.split.calibration, kind)
    return None if cache is None else cache.get(_key(task, simulator))


def _key(task: ScoringTask, simulator: Simulator) -> str:
    return content_key(simulator, task.explanation, task.split.calibration, task.calibration_kind)


def _scored(
    task: ScoringTask,
    simulator: Simulator,
    fitted: FittedCalibration,
    reused: bool,
    results: Sequence[SimulatedSequence],
    spent: SimulationCost,
) -> ScoredExplanation:
    split = task.split
    raw = tuple(result.simulation() for result in results)
    at_fault = task.calibration_field
    if task.calibration is None:
        at_fault = _calibration_sequences_of(split)
    simulations = tuple(calibrated(each, fitted.calibration, at_fault) for each in raw)
    true, expected, lengths = _comparable(split.scored, simulations)
    scores = score_sequences(true, expected, lengths, task.seed)
    before = scores
    if fitted.calibration.kind is not CalibrationKind.NONE:
        _, uncalibrated, _ = _comparable(split.scored, raw)
        before = score_sequences(true, uncalibrated, lengths, task.seed)
    return ScoredExplanation(
        explanation=task.explanation,
        simulations=simulations,
        reports=tuple(result.report for result in results),
        true_activations=split.scored.activations,
        scores=scores,
        uncalibrated_scores=before.overall,
        provenance=Provenance(
            simulator=simulator.name,
            simulator_kind=simulator.kind,
            simulator_model=simulator.model,
            prompt_version=simulator.prompt_version,
            fitted=fitted,
            dataset=split.dataset,
            seed=task.seed,
            calibration_reused=reused,
            scored_sequences=len(results),
            cost=spent,
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
            field=_calibration_sequences_of(split),
            reason="NO_SEQUENCES_TO_CALIBRATE",
        )


def _check_sequences(task: ScoringTask, sequences: LabeledSequences, name: str) -> None:
    """Refuse what no simulator can do, before anything is paid for."""
    try:
        check_request(task.explanation, sequences.tokens)
    except (InvalidInput, ResourceExhausted) as error:
        if not error.field.startswith("sequences"):
            raise
        at_fault = f"sequences.{name}{error.field.removeprefix('sequences')}"
        of_request = not task.split.dataset
        raise type(error)(
            error.message.replace(error.field, at_fault) if of_request else error.message,
            field=at_fault if of_request else "",
            reason=error.reason,
            metadata=error.metadata,
        ) from error


def _require_calibration_tokens(there_are: bool, split: ScoringSplit) -> None:
    if not there_are:
        raise InvalidInput(
            "no calibration sequence has a token with a finite true activation and a distribution",
            field=_calibration_sequences_of(split),
            reason="NO_CALIBRATION_TOKENS",
        )


def _calibration_sequences_of(split: ScoringSplit) -> str:
    """The field that has them; empty where they are a record's."""
    return "" if split.dataset else "sequences.calibration_sequences"


def _total_report(results: Sequence[SimulatedSequence]) -> ValidityReport:
    return sum((result.report for result in results), ValidityReport())


def _fit(
    kind: CalibrationKind, results: Sequence[SimulatedSequence], split: ScoringSplit
) -> FittedCalibration:
    labeled = split.calibration
    true, simulated, _ = _comparable(labeled, [result.simulation() for result in results])
    usable = np.isfinite(true)
    _require_calibration_tokens(bool(usable.any()), split)
    try:
        calibration = fit_calibration(kind, simulated[usable], true[usable])
    except InvalidInput as error:
        at_fault = _calibration_sequences_of(split)
        raise InvalidInput(error.message, field=at_fault, reason=error.reason) from error
    return FittedCalibration(
        calibration,
        int(usable.sum()),
        tuple(sequence_hash(tokens) for tokens in labeled.tokens),
    )


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
