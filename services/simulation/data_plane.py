"""Everything that the simulation service does, without gRPC: `service.py` translates to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuropil.simulation import v1
from services.simulation.calibration.calibrated_simulator import calibrated
from services.simulation.calibration.calibrations import CalibrationKind, fit_calibration
from services.simulation.calibration.content import CalibrationCache
from services.simulation.calibration.fitted import FittedCalibration, sequence_hash
from services.simulation.calibration.store import CalibrationStore
from services.simulation.errors import InvalidInput, require_finite, require_same_length
from services.simulation.explaining.interface import ProposalOptions, ProposedExplanations
from services.simulation.explaining.registry import ExplainerRegistry
from services.simulation.scores.simulation_scores import ScoreTable, score_sequences
from services.simulation.scoring.attention_pairs import (
    AttentionTask,
    ScoredAttention,
    score_attention,
)
from services.simulation.scoring.judgement_questions import JudgingMethod
from services.simulation.scoring.judging import JudgedExplanation, JudgingTask, judge
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit, Tokens
from services.simulation.scoring.record_source import RecordSource, by_token_pair
from services.simulation.scoring.requests import GivenSequences, ScoringMethod, ScoringRequest
from services.simulation.scoring.simulation_scoring import (
    ScoredExplanation,
    ScoringProgress,
    ScoringTask,
    score_explanation,
)
from services.simulation.sequence_simulation import SequenceSimulation
from services.simulation.simulators.interface import (
    SimulatedSequence,
    SimulationCost,
    Simulator,
    ValidityReport,
)
from services.simulation.simulators.registry import SimulatorRegistry
from services.simulation.state.store import StateStore, not_configured
from shared.errors import ResourceExhausted

FloatArray = NDArray[np.float64]
Scored = ScoredExplanation | JudgedExplanation | ScoredAttention

_RESULT_BYTES_PER_TOKEN = 128
"""Of a scored token: 11 probabilities, three numbers, and a generous token text."""
_JUDGING_METHODS = {
    ScoringMethod.DETECTION: JudgingMethod.DETECTION,
    ScoringMethod.FUZZING: JudgingMethod.FUZZING,
}


@dataclass(frozen=True, eq=False, slots=True)
class Simulated:
    """What simulating gives: calibrated where that was asked for."""

    simulation: SequenceSimulation
    report: ValidityReport
    cost: SimulationCost


class SimulationPlane:
    """Simulates, calibrates, scores and explains with what a deployment has."""

    def __init__(
        self,
        simulators: SimulatorRegistry,
        explainers: ExplainerRegistry,
        records: RecordSource,
        state: StateStore | None,
        *,
        default_calibration: CalibrationKind,
        max_result_bytes: int,
    ) -> None:
        self.simulators = simulators
        self.explainers = explainers
        self._records = records
        self._calibrations = None if state is None else CalibrationStore(state)
        self._default_calibration = default_calibration
        self._max_result_bytes = max_result_bytes
        self._fits = CalibrationCache()

    @property
    def defaults(self) -> tuple[str, str]:
        """The simulator and the kind of calibration of a request that names none."""
        return self.simulators.default.name, self._default_calibration.value

    async def simulate(
        self,
        simulator: str,
        explanation: str,
        sequences: Sequence[Tokens],
        calibration: FittedCalibration | None = None,
        calibration_id: str = "",
    ) -> AsyncGenerator[Simulated, None]:
        """One result a sequence, in order, each as soon as it is there."""
        found = self.simulators.get(simulator)
        fitted = await self.calibration(calibration, calibration_id)
        async with aclosing(found.simulate(explanation, sequences)) as results:
            async for result in results:
                yield _simulated(result, fitted, _calibration_field(calibration_id))

    async def simulate_explanations(
        self,
        simulator: str,
        explanations: Sequence[str],
        tokens: Tokens,
        calibration: FittedCalibration | None = None,
        calibration_id: str = "",
    ) -> AsyncGenerator[Simulated, None]:
        """One result an explanation, in order, each as soon as it is there."""
        found = self.simulators.get(simulator)
        fitted = await self.calibration(calibration, calibration_id)
        async with aclosing(found.simulate_explanations(explanations, tokens)) as results:
            async for result in results:
                yield _simulated(result, fitted, _calibration_field(calibration_id))

    async def fit(
        self,
        kind: CalibrationKind | None,
        simulated: FloatArray,
        true: FloatArray,
        sequences: Sequence[Tokens] | None = None,
    ) -> FittedCalibration:
        """Fit to simulated and true activations [N] of the same tokens; None is the default kind.

        Raises:
            InvalidInput: lengths differ, or a number isn't finite.
        """
        require_same_length(len(simulated), "simulated", len(true), "true_activations")
        require_finite(simulated, "simulated")
        require_finite(true, "true_activations")
        hashes: tuple[int, ...] = ()
        if sequences is not None:
            count = sum(len(tokens) for tokens in sequences)
            require_same_length(count, "sequences.tokens", len(simulated), "simulated")
            hashes = tuple(sequence_hash(tokens) for tokens in sequences)
        calibration = await asyncio.to_thread(
            fit_calibration, kind or self._default_calibration, simulated, true
        )
        return FittedCalibration(calibration, len(true), hashes)

    async def apply(
        self, calibration: FittedCalibration | None, calibration_id: str, values: FloatArray
    ) -> FloatArray:
        """Values of any shape, in the component's units.

        Raises:
            InvalidInput: no calibration is given, or two.
        """
        fitted = await self.calibration(calibration, calibration_id)
        if fitted is None:
            raise InvalidInput(
                "a calibration is needed, or the calibration_id of one that is kept",
                field="calibration",
            )
        mapped = await asyncio.to_thread(fitted.calibration.apply, values.reshape(-1))
        return mapped.reshape(values.shape)

    async def store_calibration(self, calibration: FittedCalibration) -> str:
        """Keep a calibration; its id, the same for the same content.

        Raises:
            FailedPrecondition: STATE_NOT_CONFIGURED.
        """
        return await self._stored().put(calibration)

    async def calibration(
        self, given: FittedCalibration | None, calibration_id: str
    ) -> FittedCalibration | None:
        """The calibration that is given, or kept under an id; None where neither is named.

        Raises:
            InvalidInput: both are named, or `calibration_id` is no id.
            FailedPrecondition: STATE_NOT_CONFIGURED.
            NotFound: nothing is kept under the id.
        """
        if not calibration_id:
            return given
        if given is not None:
            raise InvalidInput(
                "calibration and calibration_id are both set; one calibration is applied",
                field="calibration_id",
            )
        return await self._stored().get(calibration_id)

    async def stored_calibration(self, calibration_id: str) -> FittedCalibration:
        """A calibration that was kept; raises as `calibration` does."""
        return await self._stored().get(calibration_id)

    async def score_simulations(
        self, true: FloatArray, expected: FloatArray, lengths: Sequence[int]
    ) -> ScoreTable:
        """Scores of simulations at hand, with intervals of seed 0; see `score_sequences`."""
        return await asyncio.to_thread(score_sequences, true, expected, lengths, 0)

    async def propose(
        self, explainer: str, component: v1.RecordedComponent, options: ProposalOptions
    ) -> ProposedExplanations:
        """Explanations of a recorded component, best first; see `Explainer.propose`."""
        found = self.explainers.get(explainer)
        return await found.propose(await self._records.evidence(component), options)

    async def score(
        self, request: ScoringRequest
    ) -> AsyncGenerator[ScoringProgress | Scored, None]:
        """Progress while it runs, then the result.

        Raises:
            InvalidInput: the request contradicts itself, or its method doesn't fit the component.
            FailedPrecondition, ResourceExhausted, Unavailable, NotFound: as the method, the record
                reader and the simulator say.
        """
        simulator = self.simulators.get(request.simulator)
        method = _method(request)
        _check_calibration(request, method)
        if method is ScoringMethod.SIMULATION:
            events = self._score_simulation(request, simulator)
        elif method is ScoringMethod.ATTENTION_PAIRS:
            events = self._score_pairs(request, simulator)
        else:
            events = self._judge(request, _JUDGING_METHODS[method], simulator)
        async with aclosing(events) as running:
            async for event in running:
                yield event

    async def _score_simulation(
        self, request: ScoringRequest, simulator: Simulator
    ) -> AsyncGenerator[ScoringProgress | Scored, None]:
        given = await self.calibration(request.calibration, request.calibration_id)
        kind = request.calibration_kind or self._default_calibration
        split = await self._split(request, fits=given is None and kind is not CalibrationKind.NONE)
        split = split.limited(request.max_sequences)
        self._check_size(split.scored)
        task = ScoringTask(
            explanation=request.explanation,
            split=split,
            calibration_kind=kind,
            seed=request.seed,
            min_coverage=request.min_coverage,
            calibration=given,
            calibration_field=_calibration_field(request.calibration_id),
        )
        async with aclosing(score_explanation(task, simulator, self._fits)) as events:
            async for event in events:
                yield event

    async def _judge(
        self, request: ScoringRequest, method: JudgingMethod, simulator: Simulator
    ) -> AsyncGenerator[ScoringProgress | Scored, None]:
        split = await self._split(request, fits=False)
        task = JudgingTask(
            explanation=request.explanation,
            split=split,
            method=method,
            seed=request.seed,
            max_judgements=request.max_judgements,
            low_activation_threshold=request.low_activation_threshold,
            min_coverage=request.min_coverage,
            max_sequences=request.max_sequences,
        )
        async with aclosing(judge(task, simulator)) as events:
            async for event in events:
                yield event

    async def _score_pairs(
        self, request: ScoringRequest, simulator: Simulator
    ) -> AsyncGenerator[ScoringProgress | Scored, None]:
        if isinstance(request.source, GivenSequences):
            raise InvalidInput(
                "token pairs are scored of a recorded component; give recorded_component",
                field="recorded_component",
            )
        task = AttentionTask(
            explanation=request.explanation,
            split=await self._records.token_pair_split(request.source),
            pairs_per_sequence=request.pairs_per_sequence,
            low_activation_threshold=request.low_activation_threshold,
            max_sequences=request.max_sequences,
            seed=request.seed,
            min_coverage=request.min_coverage,
        )
        async with aclosing(score_attention(task, simulator)) as events:
            async for event in events:
                yield event

    async def _split(self, request: ScoringRequest, *, fits: bool) -> ScoringSplit:
        source = request.source
        if not isinstance(source, GivenSequences):
            return await self._records.split(source)
        if fits:
            return ScoringSplit.from_request(source.calibration, source.scored)
        return ScoringSplit(source.calibration, source.scored)

    def _stored(self) -> CalibrationStore:
        if self._calibrations is None:
            raise not_configured("keeping calibrations")
        return self._calibrations

    def _check_size(self, scored: LabeledSequences) -> None:
        """Refuse before anything is spent what couldn't be sent back."""
        tokens = sum(len(sequence) for sequence in scored.tokens)
        estimate = tokens * _RESULT_BYTES_PER_TOKEN
        if estimate > self._max_result_bytes:
            raise ResourceExhausted(
                f"scoring {tokens} tokens would answer about {estimate} bytes; a message holds "
                f"{self._max_result_bytes}; set max_sequences",
                field="max_sequences",
                reason="RESULT_TOO_LARGE",
                metadata={"estimate": str(estimate), "limit": str(self._max_result_bytes)},
            )


def _simulated(
    result: SimulatedSequence, fitted: FittedCalibration | None, field: str
) -> Simulated:
    simulation = result.simulation()
    if fitted is not None:
        simulation = calibrated(simulation, fitted.calibration, field)
    return Simulated(simulation, result.report, result.cost)


def _calibration_field(calibration_id: str) -> str:
    return "calibration_id" if calibration_id else "calibration"


def _method(request: ScoringRequest) -> ScoringMethod:
    source, method = request.source, request.method
    pairs = not isinstance(source, GivenSequences) and by_token_pair(source.component)
    if method is None:
        return ScoringMethod.ATTENTION_PAIRS if pairs else ScoringMethod.SIMULATION
    if pairs != (method is ScoringMethod.ATTENTION_PAIRS):
        what = "by token pair" if pairs else "by token"
        raise InvalidInput(
            f"method {method} doesn't score components that are recorded {what}; leave it unset",
            field="method",
            reason="METHOD_DOES_NOT_FIT",
        )
    return method


def _check_calibration(request: ScoringRequest, method: ScoringMethod) -> None:
    field = _calibration_field(request.calibration_id)
    if request.calibration is None and not request.calibration_id:
        return
    if method is not ScoringMethod.SIMULATION:
        raise InvalidInput(f"{field} is set, and nothing is calibrated for {method}", field=field)
    if isinstance(request.source, GivenSequences) and len(request.source.calibration):
        raise InvalidInput(
            f"{field} is set together with sequences.calibration_sequences; one is applied "
            "or one is fitted",
            field=field,
        )
    if request.calibration_kind is not None:
        raise InvalidInput(
            f"{field} is set together with calibration_kind; a calibration has its own kind",
            field="calibration_kind",
        )
