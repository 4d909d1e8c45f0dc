"""The routes that explain and score, over a socket, on a service that notes its calls."""

from __future__ import annotations

from typing import Any

import pytest

from neuropil.simulation import v1 as simulation_v1
from shared.errors import FailedPrecondition
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


async def test_a_head_is_scored_by_the_way_that_the_service_takes_for_it() -> None:
    simulation = Simulation(0.75)
    async with gateway_to(simulation=simulation) as client:
        answer = await client.post("/score", json=SCORE | {"dst": "attn_write_norm"})
        assert answer.json() == {"score": 0.75, "datasetPath": "/records"}
    assert simulation.requests[0].method == simulation_v1.SCORING_METHOD_UNSPECIFIED


async def test_no_field_is_named_that_a_body_has_not() -> None:
    class Refusing(Servicer):
        async def ScoreExplanation(self, request: Any, context: Any) -> Any:
            raise FailedPrecondition("no judge", field="simulator", reason="NO_LANGUAGE_MODEL")
            yield

    async with gateway_to(simulation=Refusing()) as client:
        answer = await client.post("/score", json=SCORE)
        assert (answer.status_code, answer.json()["reason"]) == (400, "NO_LANGUAGE_MODEL")
        assert answer.json()["field"] == ""


EXPLAIN = {key: SCORE[key] for key in ("dst", "layerIndex", "activationIndex", "datasets")}


async def test_explanations_are_proposed() -> None:
    requests = []

    async def propose(request: Any, context: Any) -> Any:
        requests.append(request)
        return simulation_v1.ProposeExplanationsResponse(
            explanations=["words about animals", "names – «ünïcode»"], dataset="/records"
        )

    async with gateway_to(simulation=Servicer(ProposeExplanations=propose)) as client:
        answer = await client.post("/explain", json=EXPLAIN)
        assert answer.json() == {
            "explanations": ["words about animals", "names – «ünïcode»"],
            "dataset": "/records",
        }
    (request,) = requests
    assert request.explainer == ""
    assert request.recorded_component.component.component_index == 1
    assert list(request.recorded_component.datasets) == ["demo"]


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"dst": "nothing"}, 422, "dst"),
        ({"layerIndex": None}, 422, "layerIndex"),
        ({"activationIndex": -1}, 400, "activationIndex"),
        ({"datasets": []}, 400, "datasets"),
    ],
)
async def test_bad_requests_to_explain_name_the_field(
    changes: dict[str, Any], status: int, field: str
) -> None:
    async with gateway_to(simulation=Servicer()) as client:
        answer = await client.post("/explain", json=EXPLAIN | changes)
        assert answer.status_code == status, answer.text
        assert answer.json()["field"] == field


async def test_why_nothing_is_explained_is_told() -> None:
    async def propose(request: Any, context: Any) -> Any:
        raise FailedPrecondition("nothing is active", reason="NOTHING_TO_EXPLAIN")

    async with gateway_to(simulation=Servicer(ProposeExplanations=propose)) as client:
        answer = await client.post("/explain", json=EXPLAIN)
        assert (answer.status_code, answer.json()["reason"]) == (400, "NOTHING_TO_EXPLAIN")


async def test_a_score_stream_without_result_is_a_defect() -> None:
    class Silent(Servicer):
        async def ScoreExplanation(self, request: Any, context: Any) -> Any:
            yield simulation_v1.ScoreExplanationResponse(progress=simulation_v1.Progress())

    async with gateway_to(simulation=Silent()) as client:
        answer = await client.post("/score", json=SCORE)
        assert answer.status_code == 500
