"""The gRPC face of simulation: it translates, and nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from neuropil.channel import MEBIBYTE
from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from services.simulation.calibration.calibrated_simulator import calibrated
from services.simulation.calibration.calibrations import CalibrationKind, fit_calibration
from services.simulation.convert import (
    arrays,
    calibrations,
    scored_explanations,
    scores,
    simulations,
)
from services.simulation.scores.simulation_scores import score_sequences
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit
from services.simulation.scoring.record_source import RecordSource
from services.simulation.scoring.simulation_scoring import (
    ScoringProgress,
    ScoringTask,
    score_explanation,
)
from services.simulation.simulators.interface import DEFAULT_MIN_COVERAGE
from services.simulation.simulators.registry import SimulatorRegistry
from shared.errors import ResourceExhausted, Unimplemented
from shared.rpc.interceptors.wrapping import Context

_RESULT_BYTES_PER_TOKEN = 128
"""Of a scored token: 11 probabilities, three numbers, and a generous token text."""


class SimulationService:
    """Serves the contract's Simulation."""

    def __init__(
        self,
        simulators: SimulatorRegistry,
        records: RecordSource,
        *,
        default_calibration: CalibrationKind,
        message_megabytes: int,
    ) -> None:
        self._simulators = simulators
        self._records = records
        self._default_calibration = default_calibration
        self._max_message_bytes = message_megabytes * MEBIBYTE

    async def ListSimulators(
        self, request: v1.ListSimulatorsRequest, context: Context
    ) -> v1.ListSimulatorsResponse:
        """The configured simulators."""
        return v1.ListSimulatorsResponse(
            simulators=[
                v1.Simulator(
                    name=simulator.name,
                    kind=simulator.kind,
                    model=simulator.model,
                    has_exact_probabilities=simulator.has_exact_probabilities,
                    is_default=simulator is self._simulators.default,
                    description=simulator.description,
                )
                for simulator in self._simulators
            ]
        )

    async def Simulate(
        self, request: v1.SimulateRequest, context: Context
    ) -> AsyncIterator[v1.SimulateResponse]:
        """One message a sequence, as soon as it is there."""
        simulator = self._simulators.get(request.simulator)
        sequences = arrays.tokens_of(request.sequences, "sequences")
        calibration = None
        if request.HasField("calibration"):
            calibration = calibrations.calibration_of(request.calibration, "calibration")
        results = simulator.simulate(request.explanation, sequences)
        async with aclosing(results):
            position = 0
            async for result in results:
                simulation = result.simulation()
                if calibration is not None:
                    simulation = calibrated(simulation, calibration)
                yield v1.SimulateResponse(
                    position=position,
                    simulation=simulations.simulation_message(simulation, result.report),
                    cost=simulations.cost_message(result.cost),
                )
                position += 1

    async def SimulateExplanations(
        self, request: v1.SimulateExplanationsRequest, context: Context
    ) -> AsyncIterator[v1.SimulateExplanationsResponse]:
        """One message an explanation, as soon as it is there."""
        simulator = self._simulators.get(request.simulator)
        results = simulator.simulate_explanations(request.explanations, tuple(request.tokens))
        async with aclosing(results):
            position = 0
            async for result in results:
                yield v1.SimulateExplanationsResponse(
                    position=position,
                    simulation=simulations.simulation_message(result.simulation(), result.report),
                    cost=simulations.cost_message(result.cost),
                )
                position += 1

    async def FitCalibration(
        self, request: v1.FitCalibrationRequest, context: Context
    ) -> v1.FitCalibrationResponse:
        """A calibration as data."""
        kind = calibrations.kind_of(request.kind, self._default_calibration, "kind")
        simulated = arrays.vector_of(request.simulated, "simulated")
        true = arrays.vector_of(request.true_activations, "true_activations")
        calibration = await asyncio.to_thread(fit_calibration, kind, simulated, true)
        return v1.FitCalibrationResponse(
            calibration=calibrations.calibration_message(calibration, len(true))
        )

    async def ApplyCalibration(
        self, request: v1.ApplyCalibrationRequest, context: Context
    ) -> v1.ApplyCalibrationResponse:
        """Values in the component's units."""
        calibration = calibrations.calibration_of(request.calibration, "calibration")
        values = arrays.array_of(request.values, "values")
        mapped = await asyncio.to_thread(calibration.apply, values.reshape(-1))
        return v1.ApplyCalibrationResponse(values=to_tensor(mapped.reshape(values.shape)))

    async def StoreCalibration(
        self, request: v1.StoreCalibrationRequest, context: Context
    ) -> v1.StoreCalibrationResponse:
        """Not served yet."""
        raise Unimplemented("Keeping calibrations is not served by this release.")

    async def GetCalibration(
        self, request: v1.GetCalibrationRequest, context: Context
    ) -> v1.GetCalibrationResponse:
        """Not served yet."""
        raise Unimplemented("Keeping calibrations is not served by this release.")

    async def ListExplainers(
        self, request: v1.ListExplainersRequest, context: Context
    ) -> v1.ListExplainersResponse:
        """Not served yet."""
        raise Unimplemented("Proposing explanations is not served by this release.")

    async def ScoreExplanation(
        self, request: v1.ScoreExplanationRequest, context: Context
    ) -> AsyncIterator[v1.ScoreExplanationResponse]:
        """Progress, then the scored explanation."""
        simulator = self._simulators.get(request.simulator)
        kind = calibrations.kind_of(
            request.calibration_kind, self._default_calibration, "calibration_kind"
        )
        if request.WhichOneof("source") == "recorded_component":
            split = await self._records.split(request.recorded_component)
        else:
            split = _split_of(request.sequences, kind)
        split = split.limited(request.max_sequences)
        self._check_size(split.scored)
        task = ScoringTask(
            explanation=request.explanation,
            split=split,
            calibration_kind=kind,
            seed=request.seed,
            min_coverage=request.min_coverage or DEFAULT_MIN_COVERAGE,
        )
        events = score_explanation(task, simulator)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, ScoringProgress):
                    yield scored_explanations.progress_message(event)
                else:
                    yield scored_explanations.result_message(event)

    async def ScoreSimulations(
        self, request: v1.ScoreSimulationsRequest, context: Context
    ) -> v1.ScoreSimulationsResponse:
        """Scores of each sequence and of all."""
        true = arrays.vector_of(request.true_activations, "true_activations")
        expected = arrays.vector_of(request.expected_activations, "expected_activations")
        lengths = list(request.sequence_lengths)
        table = await asyncio.to_thread(score_sequences, true, expected, lengths)
        return v1.ScoreSimulationsResponse(
            sequence_scores=[scores.scores_message(table[i]) for i in range(len(table))],
            scores=scores.scores_message(table.overall),
        )

    async def ProposeExplanations(
        self, request: v1.ProposeExplanationsRequest, context: Context
    ) -> v1.ProposeExplanationsResponse:
        """Not served by this release."""
        raise Unimplemented("Proposing explanations is not served by this release.")

    async def BulkScoreExplanations(
        self, request: v1.BulkScoreExplanationsRequest, context: Context
    ) -> AsyncIterator[v1.BulkScoreExplanationsResponse]:
        """Not served by this release."""
        raise Unimplemented("Scoring many explanations at once is not served by this release.")
        yield  # what makes this an asynchronous generator

    def _check_size(self, scored: LabeledSequences) -> None:
        """Refuse before anything is spent what couldn't be sent back."""
        tokens = sum(len(sequence) for sequence in scored.tokens)
        estimate = tokens * _RESULT_BYTES_PER_TOKEN
        if estimate > self._max_message_bytes:
            raise ResourceExhausted(
                f"scoring {tokens} tokens would answer about {estimate} bytes; a message holds "
                f"{self._max_message_bytes}; set max_sequences",
                field="max_sequences",
                reason="RESULT_TOO_LARGE",
                metadata={"estimate": str(estimate), "limit": str(self._max_message_bytes)},
            )


def _split_of(sequences: v1.LabeledSequences, kind: CalibrationKind) -> ScoringSplit:
    scored = arrays.labeled_sequences(sequences.scored_sequences, "sequences.scored_sequences")
    calibration = arrays.labeled_sequences(
        sequences.calibration_sequences, "sequences.calibration_sequences"
    )
    if kind is CalibrationKind.NONE:
        calibration = LabeledSequences()
    return ScoringSplit.from_request(calibration, scored)
