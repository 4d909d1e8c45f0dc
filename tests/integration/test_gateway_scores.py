"""The route that scores an explanation, over a socket, on a simulator that notes its calls."""

from __future__ import annotations

from typing import Any

import pytest

from neuropil.simulation import v1 as simulation_v1
from tests.integration.gateway_running import Servicer, gateway_to


class Simulation(Servicer):
    """Reports progress, then the score that it was made with."""

    def __init__(self, score: float | None) -> None:
        super().__init__()
        self.score = score
        self.requests: list[Any] = []

    async def ScoreExplanation(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        for done in range(3):
            yield simulation_v1.ScoreExplanationResponse(
                progress=simulation_v1.Progress(completed=done, total=3, stage="simulate")
            )
        yield simulation_v1.ScoreExplanationResponse(
            result=simulation_v1.ScoredExplanation(
                preferred_score=simulation_v1.Score(value=self.score),
                provenance=simulation_v1.ScoreProvenance(dataset="/records"),
            )
        )


SCORE = {
    "dst": "mlp_post_act",
    "layerIndex": 0,
    "activationIndex": 1,
    "datasets": ["demo"],
    "explanation": "words about animals",
}


@pytest.mark.parametrize(("score", "expected"), [(0.5, 0.5), (None, None), (float("nan"), None)])
async def test_an_explanation_is_scored(score: float | None, expected: float | None) -> None:
    simulation = Simulation(score)
    async with gateway_to(simulation=simulation) as client:
        answer = await client.post("/score", json=SCORE | {"maxSequences": 3})
        assert answer.json() == {"score": expected, "datasetPath": "/records"}
    (request,) = simulation.requests
    assert request.explanation == "words about animals"
    assert request.max_sequences == 3
    assert request.recorded_component.component.component_index == 1
    assert list(request.recorded_component.datasets) == ["demo"]


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"explanation": ""}, 400, "explanation"),
        ({"explanation": None}, 422, "explanation"),
        ({"maxSequences": 0}, 400, "maxSequences"),
        ({"maxSequences": -1}, 400, "maxSequences"),
        ({"maxSequences": 2**40}, 400, "maxSequences"),
        ({"maxSequences": 20_000}, 400, "maxSequences"),
        ({"datasets": []}, 400, "datasets"),
    ],
)
async def test_bad_scores_name_the_field(changes: dict[str, Any], status: int, field: str) -> None:
    async with gateway_to(simulation=Simulation(0.5)) as client:
        answer = await client.post("/score", json=SCORE | changes)
        assert answer.status_code == status, answer.text
        assert answer.json()["field"] == field


async def test_a_score_stream_without_result_is_a_defect() -> None:
    class Silent(Servicer):
        async def ScoreExplanation(self, request: Any, context: Any) -> Any:
            yield simulation_v1.ScoreExplanationResponse(progress=simulation_v1.Progress())

    async with gateway_to(simulation=Silent()) as client:
        answer = await client.post("/score", json=SCORE)
        assert answer.status_code == 500
