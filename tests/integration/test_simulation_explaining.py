"""Proposing explanations, and judging by them, over sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from neuropil.errors import NeuropilError, atranslated
from neuropil.names import component_id
from neuropil.simulation import v1
from shared.formats.records import ActivationRecord
from tests.integration.simulation_running import (
    ANIMALS,
    World,
    labeled,
    recorded,
    scored,
    sequence,
    serving,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with serving(tmp_path_factory.mktemp("explaining")) as running:
        yield running


async def proposed(
    world: World, component: v1.RecordedComponent, count: int = 0, seed: int = 0
) -> v1.ProposeExplanationsResponse:
    request = v1.ProposeExplanationsRequest(recorded_component=component, count=count, seed=seed)
    async with atranslated():
        answer: v1.ProposeExplanationsResponse = await world.simulation.ProposeExplanations(request)
    return answer


async def test_explanations_of_recorded_components(world: World) -> None:
    listed = await world.simulation.ListExplainers(v1.ListExplainersRequest())
    (explainer,) = listed.explainers
    assert (explainer.name, explainer.kind, explainer.state) == ("context", "context", "ready")
    assert explainer.is_default
    answer = await proposed(world, recorded(), count=5, seed=9)
    # Of 16 top sequences, the first and every fourth after it are to explain from.
    assert any(animal in answer.explanations[0] for animal in ("lion", "eagle"))
    assert list(answer.explanations) == [each.explanation for each in answer.proposals]
    best = answer.proposals[0]
    assert best.provenance.explainer == "context"
    assert best.provenance.sequence_count == 4
    assert best.provenance.seed == 9
    assert best.train_correlation > 0.9
    assert answer.dataset == world.dataset.neuron_dataset_path
    assert not answer.rejected_answers
    heads = v1.RecordedComponent(component=component_id("attn_write_norm", 0, 0), datasets=["demo"])
    # Every sequence of its record is the same, so that all are in a split that is scored.
    with pytest.raises(NeuropilError) as raised:
        await proposed(world, heads)
    assert (raised.value.code, raised.value.reason) == (
        "FAILED_PRECONDITION",
        "NOTHING_TO_EXPLAIN",
    )
    # A record with three top sequences has no train split.
    with pytest.raises(NeuropilError) as raised:
        await proposed(world, recorded(2))
    assert raised.value.reason == "NOTHING_TO_EXPLAIN"
    with pytest.raises(NeuropilError) as raised:
        await proposed(world, recorded(3))
    assert raised.value.code == "DATA_LOSS"


@pytest.mark.parametrize("method", [v1.SCORING_METHOD_DETECTION, v1.SCORING_METHOD_FUZZING])
async def test_judging_a_recorded_component(world: World, method: v1.ScoringMethod) -> None:
    words = ", ".join(f"'{animal}'" for animal in ANIMALS)
    request = v1.ScoreExplanationRequest(
        recorded_component=recorded(),
        explanation=f"the words {words}",
        method=method,
        seed=3,
        max_judgements=6,
    )
    progress, result = await scored(world, request)
    assert {each.stage for each in progress} >= {"judge", "score"}
    assert result.method == method
    judgements = result.judgements
    assert len(judgements.judgements) == 6
    assert [each.label for each in judgements.judgements].count(True) == 3
    assert judgements.validity.valid_token_count == 6
    assert result.preferred_score.value == judgements.balanced_accuracy.value == 1.0
    interval = judgements.balanced_accuracy.confidence_interval
    assert interval.low < 1.0 == interval.high
    assert not result.HasField("scored_simulation")
    marked = [list(each.marked_positions) for each in judgements.judgements]
    assert all(marked) == (method == v1.SCORING_METHOD_FUZZING)
    provenance = result.provenance
    assert (provenance.method, provenance.seed, provenance.judgement_count) == (method, 3, 6)
    assert provenance.judge_model == ""
    assert provenance.simulator_kind == "embedding"
    again = (await scored(world, request))[1]
    assert again.judgements == judgements


async def test_nothing_to_judge_is_an_error(world: World) -> None:
    quiet = [sequence(number, active=False) for number in range(4)]
    request = v1.ScoreExplanationRequest(
        sequences=v1.LabeledSequences(scored_sequences=labeled(*quiet)),
        explanation="animals",
        method=v1.SCORING_METHOD_DETECTION,
    )
    with pytest.raises(NeuropilError) as raised:
        await scored(world, request)
    assert (raised.value.code, raised.value.reason, raised.value.field) == (
        "FAILED_PRECONDITION",
        "NOTHING_TO_JUDGE",
        "sequences.scored_sequences",
    )


async def test_sequences_to_calibrate_on_say_too_what_is_active(world: World) -> None:
    given = [sequence(number, active=number < 4) for number in range(8)]
    request = v1.ScoreExplanationRequest(
        sequences=v1.LabeledSequences(scored_sequences=labeled(*given)),
        explanation=f"the words {', '.join(repr(animal) for animal in ANIMALS)}",
        method=v1.SCORING_METHOD_DETECTION,
    )
    _, result = await scored(world, request)
    assert len(result.judgements.judgements) == 8
    # Beside one of 100, 2.5 isn't active; a sequence may be in both, since nothing is fitted.
    strong = ActivationRecord([100.0, 2.5], [" a", " lion"])
    request.sequences.calibration_sequences.CopyFrom(labeled(strong, given[0]))
    with pytest.raises(NeuropilError) as raised:
        await scored(world, request)
    assert raised.value.reason == "NOTHING_TO_JUDGE"
    assert "no sequence with an activation of 0.5 of the largest" in raised.value.message


async def test_without_an_interval_there_is_no_method_of_one(world: World) -> None:
    for count, method in ((1, ""), (4, "student-t"), (20, "bootstrap-t")):
        given = [sequence(number, active=number % 2 == 0) for number in range(count)]
        request = v1.ScoreExplanationRequest(
            sequences=v1.LabeledSequences(scored_sequences=labeled(*given)),
            explanation=f"the words {', '.join(repr(animal) for animal in ANIMALS)}",
            calibration_kind=v1.CALIBRATION_KIND_NONE,
        )
        provenance = (await scored(world, request))[1].provenance
        assert provenance.interval_method == method
        assert provenance.interval_resample_count == (1000 if count == 20 else 0)
