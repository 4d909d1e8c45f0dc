"""Routes around explanations: scoring them."""

from __future__ import annotations

import math

from fastapi import APIRouter
from starlette.responses import Response

from neuropil.simulation import v1
from services.gateway.backends import calling
from services.gateway.errors import internal_error
from services.gateway.gateway import TheGateway, json_answer
from services.gateway.requests.components import ScoreRequest
from services.gateway.responses.common import PROBLEMS
from services.gateway.responses.records import ScoreResult
from services.gateway.routes.read import component_message
from shared.errors import InvalidArgument

router = APIRouter(tags=["explainer"], responses=PROBLEMS)


@router.post("/score", response_model=ScoreResult)
async def score(body: ScoreRequest, gateway: TheGateway) -> Response:
    """Simulate and score an explanation with the deployment's simulator and calibration."""
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
    async with calling("simulation"):
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
