"""The simulation service on a socket beside the real record service, through the stubs."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2

from neuropil.channel import open_aio_channel
from neuropil.simulation import v1
from neuropil.tensors import to_array, to_tensor
from tests.integration.simulation_running import (
    World,
    columns,
    labeled,
    recorded,
    scored,
    sequence,
    serving,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with serving(tmp_path_factory.mktemp("simulation")) as running:
        yield running


async def test_the_service_serves_before_its_model_is_loaded(world: World) -> None:
    answer = await world.health.Check(
        health_pb2.HealthCheckRequest(service="neuropil.simulation.v1.Simulation")
    )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    simulators = await world.simulation.ListSimulators(v1.ListSimulatorsRequest())
    (embedding,) = simulators.simulators
    assert (embedding.name, embedding.kind, embedding.is_default) == (
        "embedding",
        "embedding",
        True,
    )
    assert "all-MiniLM-L6-v2" in embedding.model
    assert not embedding.has_exact_probabilities
    assert embedding.description


async def test_sequences_are_simulated_in_order(world: World) -> None:
    sequences = [["The", " lion", " and"], [" 'x'", " \u2028", ""], [" stone"] * 40]
    request = v1.SimulateRequest(explanation="animals", sequences=columns(*sequences))
    responses = [response async for response in world.simulation.Simulate(request)]
    assert [response.position for response in responses] == [0, 1, 2]
    for response, tokens in zip(responses, sequences, strict=True):
        simulation = response.simulation
        assert list(simulation.tokens) == tokens
        probabilities = to_array(simulation.distribution_probabilities)
        assert probabilities.shape == (len(tokens), 11)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
        expected = to_array(simulation.expected_activations)
        np.testing.assert_allclose(probabilities @ np.arange(11), expected, atol=1e-5)
        assert to_array(simulation.distribution_values).tolist() == list(range(11))
        assert simulation.validity.valid_token_count == len(tokens)
        assert simulation.activation_scale == v1.ACTIVATION_SCALE_SIMULATED_NORMALIZED_ACTIVATIONS
        assert not simulation.HasField("uncalibrated_expected_activations")
    assert np.argmax(to_array(responses[0].simulation.expected_activations)) == 1
    assert sum(response.cost.prompt_tokens_computed for response in responses) > 0


async def test_a_stored_calibration_is_applied_to_simulations(world: World) -> None:
    stored = v1.Calibration(
        kind=v1.CALIBRATION_KIND_LINEAR, linear=v1.LinearCalibration(slope=0.5, intercept=1.0)
    )
    calibration = v1.Calibration.FromString(stored.SerializeToString())
    request = v1.SimulateRequest(
        explanation="animals", sequences=columns([" a", " lion"]), calibration=calibration
    )
    (response,) = [response async for response in world.simulation.Simulate(request)]
    simulation = response.simulation
    raw = to_array(simulation.uncalibrated_expected_activations)
    np.testing.assert_allclose(to_array(simulation.expected_activations), 0.5 * raw + 1.0)
    np.testing.assert_allclose(to_array(simulation.distribution_values), 0.5 * np.arange(11) + 1.0)
    assert simulation.activation_scale == v1.ACTIVATION_SCALE_NEURON_ACTIVATIONS


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (v1.CALIBRATION_KIND_NONE, [0.0, 1.0, 2.0, 20.0]),
        (v1.CALIBRATION_KIND_LINEAR, [1.0, 3.0, 5.0, 41.0]),
        (v1.CALIBRATION_KIND_PERCENTILE, [1.0, 3.0, 5.0, 7.0]),
        (v1.CALIBRATION_KIND_UNSPECIFIED, [1.0, 3.0, 5.0, 41.0]),
    ],
)
async def test_calibrations_are_fitted_and_applied(
    world: World, kind: v1.CalibrationKind, expected: list[float]
) -> None:
    fitted = await world.simulation.FitCalibration(
        v1.FitCalibrationRequest(
            kind=kind,
            simulated=to_tensor(np.array([0.0, 1.0, 2.0, 3.0], dtype=np.float32)),
            true_activations=to_tensor(np.array([1.0, 3.0, 5.0, 7.0])),
        )
    )
    assert fitted.calibration.fitted_token_count == 4
    applied = await world.simulation.ApplyCalibration(
        v1.ApplyCalibrationRequest(
            calibration=v1.Calibration.FromString(fitted.calibration.SerializeToString()),
            values=to_tensor(np.array([[0.0, 1.0], [2.0, 20.0]])),
        )
    )
    values = to_array(applied.values)
    assert values.shape == (2, 2)
    assert values.ravel().tolist() == pytest.approx(expected)


async def test_simulations_at_hand_are_scored(world: World) -> None:
    response = await world.simulation.ScoreSimulations(
        v1.ScoreSimulationsRequest(
            sequence_lengths=[3, 0, 1, 2],
            expected_activations=to_tensor(np.array([0.0, 2.0, 4.0, 1.0, math.nan, 1.0])),
            true_activations=to_tensor(np.array([0.0, 1.0, 2.0, 1.0, 0.0, 1.0])),
        )
    )
    first, empty, single, broken = response.sequence_scores
    assert first.ev_correlation.value == pytest.approx(1.0)
    assert first.r_squared.value == pytest.approx(0.0)
    assert first.absolute_deviation_explained.value == pytest.approx(0.0)
    assert empty.r_squared.undefined_reason == v1.UNDEFINED_REASON_EMPTY
    assert single.ev_correlation.undefined_reason == v1.UNDEFINED_REASON_SINGLE_TOKEN
    assert broken.ev_correlation.undefined_reason == v1.UNDEFINED_REASON_NON_FINITE_INPUT
    assert not broken.ev_correlation.HasField("value")
    assert response.scores.ev_correlation.undefined_reason == v1.UNDEFINED_REASON_NON_FINITE_INPUT


async def test_simulations_at_hand_have_intervals(world: World) -> None:
    true = np.random.default_rng(0).random(60)
    request = v1.ScoreSimulationsRequest(
        sequence_lengths=[6] * 10,
        expected_activations=to_tensor(true**2),
        true_activations=to_tensor(true),
    )
    first = await world.simulation.ScoreSimulations(request)
    for score in (first.scores.ev_correlation, first.scores.r_squared):
        interval = score.confidence_interval
        assert interval.low < score.value < interval.high
    assert not first.sequence_scores[0].r_squared.HasField("confidence_interval")
    assert await world.simulation.ScoreSimulations(request) == first


async def test_a_recorded_component_is_scored(world: World) -> None:
    request = v1.ScoreExplanationRequest(
        recorded_component=recorded(0, "unknown", "demo"), explanation="animals", seed=5
    )
    progress, result = await scored(world, request)
    assert progress[0].stage == "simulate_calibration"
    assert progress[-1].stage == "score"
    assert progress[-1].completed == progress[-1].total == 14
    provenance = result.provenance
    assert provenance.dataset == world.dataset.neuron_dataset_path
    assert (provenance.simulator, provenance.simulator_kind) == ("embedding", "embedding")
    assert provenance.calibration.kind == v1.CALIBRATION_KIND_LINEAR
    assert provenance.calibration_sequence_count == provenance.scored_sequence_count == 7
    assert provenance.seed == 5
    assert provenance.cost.prompt_tokens_computed > 0
    assert provenance.software_version
    assert result.preferred_score.value > 0.8
    assert result.preferred_score == result.scored_simulation.scores.ev_correlation
    calibrated = result.scored_simulation.scores.r_squared.value
    assert calibrated > result.uncalibrated_scores.r_squared.value
    first = result.scored_simulation.sequences[0]
    assert list(first.simulation.tokens) == sequence(2, active=True).tokens
    assert to_array(first.true_activations).tolist() == pytest.approx(
        sequence(2, active=True).activations
    )
    request.explanation = "the government and its taxes"
    _, wrong = await scored(world, request)
    assert wrong.preferred_score.value < 0.5


async def test_a_limit_and_the_calibration_are_the_callers_choice(world: World) -> None:
    request = v1.ScoreExplanationRequest(
        recorded_component=recorded(),
        explanation="animals",
        max_sequences=2,
        calibration_kind=v1.CALIBRATION_KIND_NONE,
    )
    progress, result = await scored(world, request)
    assert progress[-1].total == 2
    assert len(result.scored_simulation.sequences) == 2
    assert result.provenance.calibration_sequence_count == 0
    assert result.scored_simulation.scores == result.uncalibrated_scores
    request.calibration_kind = v1.CALIBRATION_KIND_PERCENTILE
    _, result = await scored(world, request)
    assert len(result.provenance.calibration.percentile.simulated.data) > 0


async def test_sequences_of_the_request_are_scored(world: World) -> None:
    numbers = range(8)
    request = v1.ScoreExplanationRequest(
        sequences=v1.LabeledSequences(
            calibration_sequences=labeled(*(sequence(i, active=True) for i in numbers)),
            scored_sequences=labeled(*(sequence(i + 20, active=True) for i in numbers)),
        ),
        explanation="animals",
    )
    _, result = await scored(world, request)
    assert result.preferred_score.value > 0.8
    assert result.provenance.dataset == ""


async def test_the_command_serves_and_drains(tmp_path: Path) -> None:
    config = tmp_path / "deployment.yaml"
    config.write_text("simulators: [{name: words, kind: embedding}]\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.simulation", "--config", str(config)),
        *("--port", "0", "--metrics-port", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("serving simulation 127.0.0.1:")
        async with open_aio_channel(line.split()[-1]) as channel:
            stub = v1.SimulationStub(channel)
            request = v1.SimulateRequest(
                explanation="animals", sequences=columns([" a", " lion"]), simulator="words"
            )
            call = stub.Simulate(request, timeout=120)
            await call.wait_for_connection()
            await asyncio.sleep(0.2)
            # The call waits for the model; it is answered all the same.
            process.send_signal(signal.SIGTERM)
            responses = [response async for response in call]
        assert len(responses) == 1
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "simulators: [{name: x, kind: chat, base_url: 'http://127.0.0.1:1', model: m, "
            "api_key_env: NO_SUCH_VARIABLE}]",
            "simulators[0].api_key_env: the environment variable NO_SUCH_VARIABLE is not set",
        ),
        ("simulators: [{name: x, kind: causal_lm, path: .}]", "simulators[0].path"),
        (
            "simulators: [{name: x, kind: chat, base_url: 'http://127.0.0.1:1', model: m, "
            "prompt: few_shot-1}]",
            "simulators[0].prompt",
        ),
        ("simulation_state: 's3://bucket'", "simulation_state"),
        (
            "explainers: [{name: e, kind: language_model, simulator: embedding}]",
            "explainers[0].simulator",
        ),
        ("simulators: [{name: x, kind: magic}]", "simulators[0]"),
        ("simulators: []", "simulators"),
        ("calibration: quadratic", "calibration"),
    ],
)
async def test_a_wrong_configuration_ends_the_command(
    tmp_path: Path, content: str, words: str
) -> None:
    config = tmp_path / "deployment.yaml"
    config.write_text(content)
    command = [sys.executable, "-m", "services.simulation", "--config", str(config), "--port", "0"]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
