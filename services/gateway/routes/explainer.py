"""Routes around explanations: proposing and scoring them."""

from __future__ import annotations

import math

from fastapi import APIRouter
from starlette.responses import Response

from neuropil.simulation import v1
from services.gateway.backends import calling
from services.gateway.errors import internal_error
from services.gateway.gateway import TheGateway, json_answer
from services.gateway.paths import json_path
from services.gateway.requests.components import NodeIdAndDatasets, ScoreRequest
from services.gateway.responses.common import PROBLEMS
from services.gateway.responses.records import ExplanationResult, ScoreResult
from services.gateway.routes.read import component_message
from shared.errors import InvalidArgument

_DEPLOYMENTS = frozenset({"simulator", "explainer", "calibration_kind", "method"})
"""Fields of the contract that bodies have not: what they say is the deployment's."""

router = APIRouter(tags=["explainer"], responses=PROBLEMS)


@router.post("/explain", response_model=ExplanationResult)
async def explain(body: NodeIdAndDatasets, gateway: TheGateway) -> Response:
    """Propose explanations of a component with the deployment's explainer, best first."""
    request = v1.ProposeExplanationsRequest(
        recorded_component=v1.RecordedComponent(
            component=component_message(body), datasets=body.datasets
        )
    )
    async with calling("simulation", _path):
        proposed = await gateway.backends.simulation.ProposeExplanations(request)
    return json_answer({"explanations": list(proposed.explanations), "dataset": proposed.dataset})


@router.post("/score", response_model=ScoreResult)
async def score(body: ScoreRequest, gateway: TheGateway) -> Response:
    """Score an explanation with the deployment's simulator and calibration.

    The correlation of true and simulated activations; for an attention head the area under the ROC
    curve of judged token pairs.
    """
    if body.max_sequences == 0:
        raise InvalidArgument("maxSequences: must be at least 1", field="maxSequences")
    request = v1.ScoreExplanationRequest(
        recorded_component=v1.RecordedComponent(
            component=component_message(body), datasets=body.datasets
        ),
        explanation=body.explanation,
        max_sequences=body.max_sequences or 0,
    )
    result = None
    async with calling("simulation", _path):
        async for event in gateway.backends.simulation.ScoreExplanation(request):
            if event.WhichOneof("event") == "result":
                result = event.result
    if result is None:
        raise internal_error()
    value = result.preferred_score
    defined = value.HasField("value") and math.isfinite(value.value)
    return json_answer(
        {"score": value.value if defined else None, "datasetPath": result.provenance.dataset}
    )


def _path(field: str) -> str:
    return "" if field in _DEPLOYMENTS else json_path(field)
