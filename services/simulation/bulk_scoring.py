"""Bulk runs whose items are explanations to score."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuropil.common import v1 as common
from neuropil.errors import NeuropilError as ClientError
from neuropil.errors import atranslated
from neuropil.records import v1 as records
from neuropil.simulation import v1
from neuropil.stored_scores import put_request
from services.simulation.bulk.budget import Budget
from services.simulation.bulk.events import ItemProgress, ItemResult, RunEvent
from services.simulation.bulk.run import DEFAULT_CONCURRENCY, BulkRun, BulkRunner
from services.simulation.convert.scored_explanations import scored_message
from services.simulation.convert.scoring_requests import scoring_request
from services.simulation.data_plane import Scored, SimulationPlane
from services.simulation.errors import InvalidInput
from services.simulation.scoring.simulation_scoring import ScoringProgress
from shared.errors import FailedPrecondition

if TYPE_CHECKING:
    from neuropil.records.v1.records_service_pb2_grpc import RecordReaderAsyncStub

_NO_PLACE = frozenset({"PATH_NOT_ALLOWED", "UNKNOWN_DATASET"})
"""Reasons of the record reader for names that it will never put anything to."""


@dataclass(frozen=True, eq=False)
class BulkScoring:
    """Explanations to score under one key; requests stay messages until their turn comes."""

    key: str
    requests: Sequence[v1.ScoreExplanationRequest]
    budget: Budget
    concurrency: int = DEFAULT_CONCURRENCY
    explanation_dataset: str = ""
    """Where results are put; empty means nowhere."""


class BulkScorer:
    """Scores explanations as a bulk run, and puts the results through the record reader."""

    def __init__(
        self, plane: SimulationPlane, runner: BulkRunner, records: RecordReaderAsyncStub
    ) -> None:
        self._plane = plane
        self._runner = runner
        self._records = records

    async def run(self, scoring: BulkScoring) -> AsyncGenerator[RunEvent, None]:
        """What happens, a summary last; see `BulkRunner.run`.

        Raises:
            InvalidInput: results are to be put, and a request names no component.
            neuropil.errors.NeuropilError: the record reader knows no such explanation dataset, or
                may not write there.
        """
        requests, dataset = scoring.requests, scoring.explanation_dataset
        if dataset:
            _check_components(requests)
            await self._check_place(requests[0].recorded_component.component, dataset)

        async def score(position: int) -> AsyncGenerator[ItemProgress | ItemResult, None]:
            request = scoring_request(requests[position])
            async with aclosing(self._plane.score(request)) as events:
                async for event in events:
                    if isinstance(event, ScoringProgress):
                        yield ItemProgress(event.cost)
                    else:
                        # Of thousands of sequences this takes a while.
                        result = await asyncio.to_thread(_serialized, event, request.explained_by)
                        yield ItemResult(result, event.provenance.cost)

        async def put(position: int, result: bytes) -> None:
            component = requests[position].recorded_component.component
            scored = v1.ScoredExplanation.FromString(result)
            try:
                request = put_request(component, dataset, scored)
            except ValueError as error:
                raise FailedPrecondition(str(error), reason="SCORE_NOT_STORABLE") from error
            async with atranslated():
                await self._records.PutExplanation(request)

        run = BulkRun(
            key=scoring.key,
            # 100,000 of them take a second, in which others should be answered.
            fingerprints=await asyncio.to_thread(self._fingerprints, requests),
            score=score,
            budget=scoring.budget,
            concurrency=scoring.concurrency,
            put=put if dataset else None,
            put_target=dataset,
        )
        async with aclosing(self._runner.run(run)) as running:
            async for happened in running:
                yield happened

    def _fingerprints(self, requests: Sequence[v1.ScoreExplanationRequest]) -> list[bytes]:
        simulator, calibration = self._plane.defaults
        return [_fingerprint(request, simulator, calibration) for request in requests]

    async def _check_place(self, component: common.ComponentId, dataset: str) -> None:
        """Refuse a place that nothing can be put to before anything is paid for."""
        request = records.ListExplanationsRequest(
            component=component,
            explanation_datasets=records.ExplanationDatasets(paths=[dataset]),
        )
        try:
            async with atranslated():
                await self._records.ListExplanations(request)
        except ClientError as error:
            # That nothing is there yet is no failure, and others may be over until the first put.
            if error.reason in _NO_PLACE:
                raise ClientError(
                    error.code,
                    error.message,
                    reason=error.reason,
                    field="explanation_dataset",
                    metadata=error.metadata,
                ) from error


def _serialized(scored: Scored, explained_by: v1.ExplanationProvenance | None) -> bytes:
    return scored_message(scored, explained_by).SerializeToString()


def _fingerprint(request: v1.ScoreExplanationRequest, simulator: str, calibration: str) -> bytes:
    """Of the request and of what it leaves to the deployment, whose defaults may change."""
    digest = hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=16)
    if not request.simulator:
        digest.update(b"\0simulator " + simulator.encode())
    calibrates = request.method in (v1.SCORING_METHOD_UNSPECIFIED, v1.SCORING_METHOD_SIMULATION)
    if calibrates and request.calibration_kind == v1.CALIBRATION_KIND_UNSPECIFIED:
        digest.update(b"\0calibration " + calibration.encode())
    return digest.digest()


def _check_components(requests: Sequence[v1.ScoreExplanationRequest]) -> None:
    for position, request in enumerate(requests):
        if request.WhichOneof("source") != "recorded_component":
            raise InvalidInput(
                f"requests[{position}] brings its own sequences; an explanation is stored with a "
                "component; leave explanation_dataset empty",
                field=f"requests[{position}].recorded_component",
            )
