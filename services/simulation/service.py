"""The gRPC face of simulation: it translates, and nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from services.simulation.bulk.budget import Budget
from services.simulation.bulk.run import DEFAULT_CONCURRENCY
from services.simulation.bulk_scoring import BulkScorer, BulkScoring
from services.simulation.calibration.fitted import FittedCalibration
from services.simulation.convert.arrays import array_of, tokens_of, vector_of
from services.simulation.convert.bulk_runs import event_message
from services.simulation.convert.calibrations import (
    calibration_message,
    calibration_of,
    kind_of,
)
from services.simulation.convert.explanations import (
    explainer_message,
    proposal_options,
    proposals_message,
)
from services.simulation.convert.scored_explanations import progress_message, scored_message
from services.simulation.convert.scores import score_table_message
from services.simulation.convert.scoring_requests import scoring_request
from services.simulation.convert.simulations import (
    cost_message,
    simulation_message,
    simulator_message,
)
from services.simulation.data_plane import SimulationPlane
from services.simulation.scoring.simulation_scoring import ScoringProgress
from shared.rpc.interceptors.wrapping import Context


class SimulationService:
    """Serves the contract's Simulation."""

    def __init__(self, plane: SimulationPlane, bulk: BulkScorer) -> None:
        self._plane = plane
        self._bulk = bulk

    async def ListSimulators(
        self, request: v1.ListSimulatorsRequest, context: Context
    ) -> v1.ListSimulatorsResponse:
        """The configured simulators."""
        simulators = self._plane.simulators
        return v1.ListSimulatorsResponse(
            simulators=[
                simulator_message(simulator, is_default=simulator is simulators.default)
                for simulator in simulators
            ]
        )

    async def Simulate(
        self, request: v1.SimulateRequest, context: Context
    ) -> AsyncIterator[v1.SimulateResponse]:
        """One message a sequence, as soon as it is there."""
        results = self._plane.simulate(
            request.simulator,
            request.explanation,
            tokens_of(request.sequences, "sequences"),
            _calibration_of(request),
            request.calibration_id,
        )
        position = 0
        async with aclosing(results):
            async for result in results:
                yield v1.SimulateResponse(
                    position=position,
                    simulation=simulation_message(result.simulation, result.report),
                    cost=cost_message(result.cost),
                )
                position += 1

    async def SimulateExplanations(
        self, request: v1.SimulateExplanationsRequest, context: Context
    ) -> AsyncIterator[v1.SimulateExplanationsResponse]:
        """One message an explanation, as soon as it is there."""
        results = self._plane.simulate_explanations(
            request.simulator,
            request.explanations,
            tuple(request.tokens),
            _calibration_of(request),
            request.calibration_id,
        )
        position = 0
        async with aclosing(results):
            async for result in results:
                yield v1.SimulateExplanationsResponse(
                    position=position,
                    simulation=simulation_message(result.simulation, result.report),
                    cost=cost_message(result.cost),
                )
                position += 1

    async def FitCalibration(
        self, request: v1.FitCalibrationRequest, context: Context
    ) -> v1.FitCalibrationResponse:
        """A calibration as data."""
        has_sequences = request.HasField("sequences")
        fitted = await self._plane.fit(
            kind_of(request.kind),
            vector_of(request.simulated, "simulated"),
            vector_of(request.true_activations, "true_activations"),
            tokens_of(request.sequences, "sequences") if has_sequences else None,
        )
        return v1.FitCalibrationResponse(calibration=calibration_message(fitted))

    async def ApplyCalibration(
        self, request: v1.ApplyCalibrationRequest, context: Context
    ) -> v1.ApplyCalibrationResponse:
        """Values in the component's units."""
        values = array_of(request.values, "values")
        mapped = await self._plane.apply(_calibration_of(request), request.calibration_id, values)
        return v1.ApplyCalibrationResponse(values=to_tensor(mapped))

    async def StoreCalibration(
        self, request: v1.StoreCalibrationRequest, context: Context
    ) -> v1.StoreCalibrationResponse:
        """The id of a calibration that is kept now."""
        fitted = calibration_of(request.calibration, "calibration")
        return v1.StoreCalibrationResponse(
            calibration_id=await self._plane.store_calibration(fitted)
        )

    async def GetCalibration(
        self, request: v1.GetCalibrationRequest, context: Context
    ) -> v1.GetCalibrationResponse:
        """A calibration that was kept."""
        fitted = await self._plane.stored_calibration(request.calibration_id)
        return v1.GetCalibrationResponse(calibration=calibration_message(fitted))

    async def ScoreExplanation(
        self, request: v1.ScoreExplanationRequest, context: Context
    ) -> AsyncIterator[v1.ScoreExplanationResponse]:
        """Progress, then the scored explanation."""
        asked = scoring_request(request)
        events = self._plane.score(asked)
        async with aclosing(events):
            async for event in events:
                if isinstance(event, ScoringProgress):
                    yield progress_message(event)
                else:
                    scored = await asyncio.to_thread(scored_message, event, asked.explained_by)
                    yield v1.ScoreExplanationResponse(result=scored)

    async def ScoreSimulations(
        self, request: v1.ScoreSimulationsRequest, context: Context
    ) -> v1.ScoreSimulationsResponse:
        """Scores of each sequence and of all."""
        table = await self._plane.score_simulations(
            vector_of(request.true_activations, "true_activations"),
            vector_of(request.expected_activations, "expected_activations"),
            list(request.sequence_lengths),
        )
        # Of 100,000 sequences this takes a second, in which others should be answered.
        return await asyncio.to_thread(score_table_message, table)

    async def ListExplainers(
        self, request: v1.ListExplainersRequest, context: Context
    ) -> v1.ListExplainersResponse:
        """The configured explainers."""
        explainers = self._plane.explainers
        return v1.ListExplainersResponse(
            explainers=[
                explainer_message(explainer, is_default=explainer is explainers.default)
                for explainer in explainers
            ]
        )

    async def ProposeExplanations(
        self, request: v1.ProposeExplanationsRequest, context: Context
    ) -> v1.ProposeExplanationsResponse:
        """Explanations, best first."""
        proposed = await self._plane.propose(
            request.explainer, request.recorded_component, proposal_options(request)
        )
        return proposals_message(proposed)

    async def BulkScoreExplanations(
        self, request: v1.BulkScoreExplanationsRequest, context: Context
    ) -> AsyncIterator[v1.BulkScoreExplanationsResponse]:
        """Progress and results, then a summary."""
        scoring = BulkScoring(
            key=request.resume_key,
            requests=request.requests,
            budget=Budget(request.budget.max_tokens, request.budget.max_calls),
            concurrency=request.max_concurrency or DEFAULT_CONCURRENCY,
            explanation_dataset=request.explanation_dataset,
        )
        events = self._bulk.run(scoring)
        async with aclosing(events):
            async for event in events:
                yield event_message(event)


def _calibration_of(
    request: v1.SimulateRequest | v1.SimulateExplanationsRequest | v1.ApplyCalibrationRequest,
) -> FittedCalibration | None:
    if not request.HasField("calibration"):
        return None
    return calibration_of(request.calibration, "calibration")
