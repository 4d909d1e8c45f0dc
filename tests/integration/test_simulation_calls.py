"""Every call of the simulation service with several kinds of simulators; over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from neuropil.names import component_id
from neuropil.records import v1 as records_v1
from neuropil.simulation import v1
from neuropil.tensors import to_array, to_tensor
from shared.settings import (
    CausalLmSimulator,
)
from tests.integration.simulation_kinds import (
    EXPLANATIONS,
    HEAD,
    NEURON,
    READY_SECONDS,
    TOKENS,
    World,
    all_of,
    recorded,
    refusal,
    request,
    result_of,
    serving_kinds,
)
from tests.integration.simulation_running import columns

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.torch]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with serving_kinds(tmp_path_factory) as running:
        yield running


async def test_simulators_become_ready_and_say_what_they_found_out(world: World) -> None:
    async with asyncio.timeout(READY_SECONDS):
        while True:
            answer = await world.simulation.ListSimulators(v1.ListSimulatorsRequest())
            simulators = {each.name: each for each in answer.simulators}
            if all(each.state == "ready" for each in answer.simulators):
                break
            assert {each.state for each in answer.simulators} <= {"loading", "ready"}
            await asyncio.sleep(0.05)
    assert [each.name for each in answer.simulators if each.is_default] == ["embedding"]
    asks = {name: each.runs_language_model for name, each in simulators.items()}
    assert asks == {"embedding": False, "local": True, "slow": True, "far": True}
    for name in ("local", "slow", "far"):
        assert simulators[name].capabilities
        assert simulators[name].prompt_version
    # One model serves both local simulators.
    assert simulators["local"].model == simulators["slow"].model
    assert "@" in simulators["local"].model


async def test_what_can_not_be_loaded_is_failed_and_unavailable(
    world: World, tmp_path: Path
) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (broken / name).write_bytes(b"{}")
    settings = (CausalLmSimulator(name="broken", kind="causal_lm", path=str(broken)),)
    asked = v1.SimulateRequest(explanation="x", sequences=columns(TOKENS))
    async with world.another(
        simulators=settings,
        default_simulator=None,
        explainers=world.deployment.explainers[:1],
    ) as stub:
        error = await refusal(stub.Simulate(asked))
        assert (error.code, error.reason) == ("UNAVAILABLE", "MODEL_NOT_LOADED")
        (listed,) = (await stub.ListSimulators(v1.ListSimulatorsRequest())).simulators
        assert listed.state.startswith("failed: ")
        assert str(broken) in listed.state


@pytest.mark.parametrize("simulator", ["embedding", "local", "slow", "far"])
async def test_many_explanations_of_a_sequence_are_as_one_by_one(
    world: World, simulator: str
) -> None:
    together = await all_of(
        world.simulation.SimulateExplanations(
            v1.SimulateExplanationsRequest(
                simulator=simulator, explanations=EXPLANATIONS, tokens=TOKENS
            )
        )
    )
    assert [each.position for each in together] == [0, 1]
    for explanation, each in zip(EXPLANATIONS, together, strict=True):
        (alone,) = await all_of(
            world.simulation.Simulate(
                v1.SimulateRequest(
                    simulator=simulator, explanation=explanation, sequences=columns(TOKENS)
                )
            )
        )
        np.testing.assert_allclose(
            to_array(each.simulation.distribution_probabilities),
            to_array(alone.simulation.distribution_probabilities),
            atol=1e-5,
        )
        validity = each.simulation.validity
        counted = validity.valid_token_count + validity.malformed_token_count
        assert counted + validity.missing_token_count == len(TOKENS)


async def test_a_calibration_is_kept_and_applied_by_another_process(world: World) -> None:
    simulated, true = np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.5, 0.25, 3.0, 4.0])
    for kind in (v1.CALIBRATION_KIND_ISOTONIC, v1.CALIBRATION_KIND_LINEAR):
        fitted = await world.simulation.FitCalibration(
            v1.FitCalibrationRequest(
                kind=kind,
                simulated=to_tensor(simulated),
                true_activations=to_tensor(true),
                sequences=columns(["a", "b"], ["c", "d"]),
            )
        )
        assert len(fitted.calibration.fitted_sequence_hashes) == 2
        kept = await world.simulation.StoreCalibration(
            v1.StoreCalibrationRequest(calibration=fitted.calibration)
        )
        values = to_tensor(np.array([[0.5, 3.0], [np.nan, 9.0]]))
        here = await world.simulation.ApplyCalibration(
            v1.ApplyCalibrationRequest(calibration=fitted.calibration, values=values)
        )
        async with world.another() as stub:
            there = await stub.ApplyCalibration(
                v1.ApplyCalibrationRequest(calibration_id=kept.calibration_id, values=values)
            )
            again = await stub.GetCalibration(
                v1.GetCalibrationRequest(calibration_id=kept.calibration_id)
            )
        assert there.values == here.values
        assert again.calibration == fitted.calibration
    sequences = columns(TOKENS)
    (plain,) = await all_of(
        world.simulation.Simulate(v1.SimulateRequest(explanation="x", sequences=sequences))
    )
    (mapped,) = await all_of(
        world.simulation.Simulate(
            v1.SimulateRequest(
                explanation="x", sequences=sequences, calibration_id=kept.calibration_id
            )
        )
    )
    line = fitted.calibration.linear
    np.testing.assert_allclose(
        to_array(mapped.simulation.expected_activations),
        line.slope * to_array(plain.simulation.expected_activations) + line.intercept,
    )
    assert mapped.simulation.activation_scale == v1.ACTIVATION_SCALE_NEURON_ACTIVATIONS


async def test_a_calibration_never_scores_what_it_was_fitted_on(world: World) -> None:
    scored = await result_of(world.simulation, request())
    fitted = scored.provenance.calibration
    assert len(fitted.fitted_sequence_hashes) == scored.provenance.calibration_sequence_count > 0
    # Applied to the record again: the scored split holds none of what it was fitted on.
    again = await result_of(world.simulation, request(calibration=fitted))
    assert again.provenance.calibration_reused
    assert again.preferred_score.value == pytest.approx(scored.preferred_score.value)
    assert again.provenance.calibration == fitted
    simulation = scored.scored_simulation.sequences[0].simulation
    true = to_array(scored.scored_simulation.sequences[0].true_activations)
    simulated = to_array(simulation.uncalibrated_expected_activations)
    own = await world.simulation.FitCalibration(
        v1.FitCalibrationRequest(
            kind=v1.CALIBRATION_KIND_LINEAR,
            simulated=to_tensor(simulated),
            true_activations=to_tensor(true),
            sequences=columns(list(simulation.tokens)),
        )
    )
    error = await refusal(
        world.simulation.ScoreExplanation(request(calibration=own.calibration, max_sequences=0))
    )
    assert (error.reason, error.field) == ("SCORED_SEQUENCE_IN_CALIBRATION", "calibration")


async def test_a_second_score_does_not_fit_again(world: World) -> None:
    first = await result_of(world.simulation, request(explanation="numbers", max_sequences=0))
    second = await result_of(world.simulation, request(explanation="numbers", max_sequences=0))
    assert not first.provenance.calibration_reused
    assert second.provenance.calibration_reused
    assert second.scored_simulation == first.scored_simulation
    assert second.provenance.calibration == first.provenance.calibration
    assert second.preferred_score.HasField("confidence_interval")
    assert second.provenance.interval_method
    single = await result_of(world.simulation, request(explanation="numbers", max_sequences=1))
    assert not single.preferred_score.HasField("confidence_interval")
    assert single.provenance.interval_method == ""
    assert single.provenance.interval_resample_count == 0


@pytest.mark.parametrize("method", ["DETECTION", "FUZZING"])
@pytest.mark.parametrize("simulator", ["embedding", "local"])
async def test_sequences_and_marked_tokens_are_judged(
    world: World, method: str, simulator: str
) -> None:
    value = v1.ScoringMethod.Value(f"SCORING_METHOD_{method}")
    asked = request(method=value, simulator=simulator, max_judgements=6, max_sequences=0)
    asked.explanation_provenance.explainer = "somebody"
    scored = await result_of(world.simulation, asked)
    judged = scored.judgements
    assert scored.method == scored.provenance.method == value
    assert scored.preferred_score == judged.balanced_accuracy
    assert 0 < len(judged.judgements) == scored.provenance.judgement_count <= 6
    assert bool(scored.provenance.judge_model) == (simulator == "local")
    assert {each.label for each in judged.judgements} == {True, False}
    assert all(bool(each.marked_positions) == (method == "FUZZING") for each in judged.judgements)
    right = {True: [], False: []}  # type: ignore[var-annotated]
    for each in judged.judgements:
        right[each.label].append((each.probability >= 0.5) == each.label)
    expected = (np.mean(right[True]) + np.mean(right[False])) / 2
    assert judged.balanced_accuracy.value == pytest.approx(expected)
    assert scored.provenance.explanation.explainer == "somebody"


async def test_a_head_is_scored_by_its_token_pairs(world: World) -> None:
    scored = await result_of(world.simulation, request(HEAD, simulator="local"))
    assert scored.method == v1.SCORING_METHOD_ATTENTION_PAIRS
    assert scored.preferred_score == scored.attention.roc_auc
    labels = np.concatenate([to_array(each.labels) for each in scored.attention.sequences])
    assert scored.provenance.pair_count == len(labels)
    assert set(labels.tolist()) == {0, 1}
    for each in scored.attention.sequences:
        pairs = to_array(each.pairs)
        assert (pairs[:, 1] <= pairs[:, 0]).all()
        assert (pairs < len(each.tokens)).all()
    error = await refusal(world.simulation.ScoreExplanation(request(HEAD)))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "NO_LANGUAGE_MODEL")


@pytest.mark.parametrize("component", [NEURON, HEAD])
async def test_explanations_are_proposed(world: World, component: tuple[str, int, int]) -> None:
    answer = await world.simulation.ProposeExplanations(
        v1.ProposeExplanationsRequest(recorded_component=recorded(component), count=3)
    )
    assert 1 <= len(answer.explanations) <= 3
    assert list(answer.explanations) == [each.explanation for each in answer.proposals]
    assert len(set(answer.explanations)) == len(answer.explanations)
    assert answer.proposals[0].provenance.explainer == "context"
    assert answer.dataset == next(
        each.neuron_dataset_path
        for each in world.deployment.datasets
        if each.derived_scalar_type == component[0]
    )
    listed = (await world.simulation.ListExplainers(v1.ListExplainersRequest())).explainers
    assert [(each.name, each.is_default) for each in listed] == [
        ("context", True),
        ("asking", False),
    ]
    assert listed[1].model


async def test_a_bulk_run_goes_on_with_its_key(world: World) -> None:
    dataset = f"{world.deployment.allowed_path_prefixes[0]}/bulk"
    requests = [
        request(explanation="castles made of stone"),
        request(("mlp_post_act", 1, 100_000), explanation="nothing"),
        request(explanation="animals", method=v1.SCORING_METHOD_DETECTION),
    ]
    asked = v1.BulkScoreExplanationsRequest(
        resume_key="a key – ünïcode", requests=requests, explanation_dataset=dataset
    )
    first = await all_of(world.simulation.BulkScoreExplanations(asked))
    results = {each.result.position: each.result for each in first if each.HasField("result")}
    assert sorted(results) == [0, 1, 2]
    assert results[0].scored_explanation.preferred_score.HasField("value")
    assert results[0].put == v1.PUT_OUTCOME_STORED
    assert results[1].failure_reason == "RECORD_NOT_FOUND"
    assert results[2].put == v1.PUT_OUTCOME_FAILED
    assert "detection" in results[2].put_failure
    summary = first[-1].summary
    assert (summary.done, summary.failed, summary.left, summary.not_put) == (2, 1, 0, 1)
    assert first[-1].spent.call_count > 0
    async with world.another() as stub:
        second = await all_of(stub.BulkScoreExplanations(asked))
        again = {each.result.position: each.result for each in second if each.HasField("result")}
        assert again[0].reused
        assert again[0].scored_explanation == results[0].scored_explanation
        assert second[-1].spent.call_count == first[-1].spent.call_count
        asked.requests[0].explanation = "plants"
        error = await refusal(stub.BulkScoreExplanations(asked))
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "RESUME_KEY_USED")
    kept = await world.records.ListExplanations(
        records_v1.ListExplanationsRequest(
            component=component_id(*NEURON),
            explanation_datasets=records_v1.ExplanationDatasets(paths=[dataset]),
        )
    )
    assert [each.text for each in kept.explanations] == ["castles made of stone"]
