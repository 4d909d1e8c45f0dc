"""The simulation service on a socket beside the real record service, through the stubs."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuropil.channel import open_aio_channel
from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, atranslated
from neuropil.names import component_id
from neuropil.simulation import v1
from neuropil.tensors import to_array, to_tensor
from services.records.app import record_services
from services.simulation.app import simulation_services
from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Dataset, Deployment, Services

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANIMALS = ("lion", "horse", "sheep", "dog", "eagle", "wolf", "goat", "camel")
PLAIN = ("the stone of", "a book and", "under the roof", "in winter", "for silver")


def sequence(number: int, *, active: bool) -> ActivationRecord:
    words = f"and {PLAIN[number % 5]} a {ANIMALS[number % 8] if active else 'table'} {number} stood"
    tokens = [f" {word}" for word in words.split()]
    return ActivationRecord([2.5 if token.strip() in ANIMALS else 0.1 for token in tokens], tokens)


def animal_record(index: int, top: int, random: int) -> NeuronRecord:
    return NeuronRecord(
        NeuronId(index, 0),
        most_positive_activation_records=[sequence(i, active=True) for i in range(top)],
        random_sample=[sequence(100 + i, active=False) for i in range(random)],
    )


@dataclass
class World:
    simulation: v1.SimulationStub
    health: health_pb2_grpc.HealthStub
    dataset: Dataset
    deployment: Deployment


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    root = tmp_path_factory.mktemp("simulation")
    for index, record in enumerate(
        [animal_record(0, 16, 9), animal_record(1, 2, 0), animal_record(2, 3, 3)]
    ):
        write_atomically(root / f"mlp/0/{index}.json", encode(record))
    write_atomically(root / "mlp/0/3.json", b"{")
    heads = NeuronRecord(
        NeuronId(0, 0),
        most_positive_activation_records=[ActivationRecord([1.0, 0.5, 2.0], ["a", "b"])] * 8,
    )
    write_atomically(root / "heads/0/0.json", encode(heads))
    datasets = tuple(
        Dataset(
            short_name="demo",
            derived_scalar_type=kind,
            user_visible_name=kind,
            neuron_dataset_path=str(root / folder),
        )
        for kind, folder in (("mlp_post_act", "mlp"), ("attn_write_norm", "heads"))
    )
    async with record_services(Deployment(datasets=datasets)) as records:
        record_server = await start_server(records, ServerOptions("records"))
        deployment = Deployment(
            datasets=datasets, services=Services(records=f"127.0.0.1:{record_server.port}")
        )
        async with simulation_services(deployment) as simulation:
            server = await start_server(simulation, ServerOptions("simulation"))
            channel = open_aio_channel(f"127.0.0.1:{server.port}")
            yield World(
                v1.SimulationStub(channel),
                health_pb2_grpc.HealthStub(channel),
                datasets[0],
                deployment,
            )
            await channel.close()
            await server.drain(1)
        await record_server.drain(1)


def columns(*sequences: list[str]) -> common.TokenSequences:
    return common.TokenSequences(
        tokens=[token for tokens in sequences for token in tokens],
        sequence_lengths=[len(tokens) for tokens in sequences],
    )


def labeled(*records: ActivationRecord) -> common.TokenSequences:
    message = columns(*(record.tokens for record in records))
    flat = [value for record in records for value in record.activations]
    message.activations.CopyFrom(to_tensor(np.asarray(flat)))
    return message


def recorded(index: int = 0, *datasets: str) -> v1.RecordedComponent:
    return v1.RecordedComponent(
        component=component_id("mlp_post_act", 0, index), datasets=datasets or ["demo"]
    )


async def scored(
    world: World, request: v1.ScoreExplanationRequest
) -> tuple[list[v1.Progress], v1.ScoredExplanation]:
    async with atranslated():
        events = [event async for event in world.simulation.ScoreExplanation(request)]
    assert events[-1].HasField("result")
    return [event.progress for event in events[:-1]], events[-1].result


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


def score_request(
    calibration: common.TokenSequences | None = None,
    scored: common.TokenSequences | None = None,
    **fields: object,
) -> v1.ScoreExplanationRequest:
    known = labeled(sequence(1, active=True))
    other = labeled(sequence(2, active=True))
    return v1.ScoreExplanationRequest(
        sequences=v1.LabeledSequences(
            calibration_sequences=calibration or known, scored_sequences=scored or other
        ),
        **{"explanation": "animals", **fields},  # type: ignore[arg-type]
    )


NAN_TENSOR = to_tensor(np.array([math.nan]))
ONE = to_tensor(np.array([1.0]))
TWO = to_tensor(np.array([1.0, 2.0]))


def shortened(tensor: common.Tensor) -> common.Tensor:
    return common.Tensor(data_type=tensor.data_type, shape=tensor.shape, data=tensor.data[:-1])


def percentile(simulated: common.Tensor, calibrated: common.Tensor) -> v1.Calibration:
    return v1.Calibration(
        kind=v1.CALIBRATION_KIND_PERCENTILE,
        percentile=v1.PiecewiseLinearCalibration(simulated=simulated, calibrated=calibrated),
    )


@pytest.mark.parametrize(
    ("method", "request_message", "code", "field"),
    [
        (
            "Simulate",
            v1.SimulateRequest(explanation="", sequences=columns(["a"])),
            "",
            "explanation",
        ),
        (
            "Simulate",
            v1.SimulateRequest(explanation=" ", sequences=columns(["a"])),
            "",
            "explanation",
        ),
        (
            "Simulate",
            v1.SimulateRequest(explanation="é" * 10_001, sequences=columns(["a"])),
            "RESOURCE_EXHAUSTED",
            "explanation",
        ),
        ("Simulate", v1.SimulateRequest(explanation="x"), "", "sequences"),
        (
            "Simulate",
            v1.SimulateRequest(explanation="x", sequences=columns(["a"], [])),
            "",
            "sequences[1]",
        ),
        (
            "Simulate",
            v1.SimulateRequest(
                explanation="x",
                sequences=common.TokenSequences(tokens=["a"], sequence_lengths=[2]),
            ),
            "",
            "sequences.sequence_lengths",
        ),
        (
            "Simulate",
            v1.SimulateRequest(explanation="x", sequences=columns(["a"]), simulator="none"),
            "",
            "simulator",
        ),
        (
            "Simulate",
            v1.SimulateRequest(
                explanation="x", sequences=columns(["a"]), calibration=v1.Calibration()
            ),
            "",
            "calibration.kind",
        ),
        (
            "FitCalibration",
            v1.FitCalibrationRequest(simulated=TWO, true_activations=ONE),
            "",
            "true_activations",
        ),
        (
            "FitCalibration",
            v1.FitCalibrationRequest(simulated=ONE, true_activations=NAN_TENSOR),
            "",
            "true_activations[0]",
        ),
        (
            "FitCalibration",
            v1.FitCalibrationRequest(simulated=shortened(ONE), true_activations=ONE),
            "",
            "simulated",
        ),
        (
            "FitCalibration",
            v1.FitCalibrationRequest(simulated=to_tensor(np.zeros((1, 1))), true_activations=ONE),
            "",
            "simulated",
        ),
        (
            "FitCalibration",
            v1.FitCalibrationRequest(
                simulated=to_tensor(np.zeros(0)), true_activations=to_tensor(np.zeros(0))
            ),
            "",
            "true_activations",
        ),
        (
            "FitCalibration",
            v1.FitCalibrationRequest(
                kind=v1.CALIBRATION_KIND_ISOTONIC, simulated=ONE, true_activations=ONE
            ),
            "UNIMPLEMENTED",
            "kind",
        ),
        (
            "ApplyCalibration",
            v1.ApplyCalibrationRequest(
                calibration=v1.Calibration(kind=v1.CALIBRATION_KIND_LINEAR), values=ONE
            ),
            "",
            "calibration.linear",
        ),
        (
            "ApplyCalibration",
            v1.ApplyCalibrationRequest(calibration=percentile(ONE, TWO), values=ONE),
            "",
            "calibration.percentile.calibrated",
        ),
        (
            "ApplyCalibration",
            v1.ApplyCalibrationRequest(calibration=percentile(NAN_TENSOR, ONE), values=ONE),
            "",
            "calibration.percentile.simulated[0]",
        ),
        (
            "ApplyCalibration",
            v1.ApplyCalibrationRequest(
                calibration=v1.Calibration(kind=v1.CALIBRATION_KIND_NONE),
                values=to_tensor(np.array([0.0, math.inf])),
            ),
            "",
            "values[1]",
        ),
        (
            "ScoreSimulations",
            v1.ScoreSimulationsRequest(
                sequence_lengths=[3], expected_activations=TWO, true_activations=TWO
            ),
            "",
            "sequence_lengths",
        ),
        (
            "ScoreSimulations",
            v1.ScoreSimulationsRequest(
                sequence_lengths=[2], expected_activations=ONE, true_activations=TWO
            ),
            "",
            "expected_activations",
        ),
        ("ScoreExplanation", v1.ScoreExplanationRequest(explanation="x"), "", "source"),
        ("ScoreExplanation", score_request(explanation=""), "", "explanation"),
        ("ScoreExplanation", score_request(simulator="none"), "", "simulator"),
        ("ScoreExplanation", score_request(max_sequences=-1), "", "max_sequences"),
        ("ScoreExplanation", score_request(min_coverage=1.5), "", "min_coverage"),
        (
            "ScoreExplanation",
            score_request(calibration=labeled(sequence(2, active=True))),
            "",
            "sequences.scored_sequences",
        ),
        (
            "ScoreExplanation",
            score_request(scored=columns(["a"])),
            "",
            "sequences.scored_sequences.activations",
        ),
        (
            "ScoreExplanation",
            score_request(calibration_kind=v1.CALIBRATION_KIND_ISOTONIC),
            "UNIMPLEMENTED",
            "calibration_kind",
        ),
        (
            "ScoreExplanation",
            v1.ScoreExplanationRequest(explanation="x", recorded_component=v1.RecordedComponent()),
            "",
            "recorded_component.component",
        ),
    ],
)
async def test_bad_requests_name_the_field(
    world: World, method: str, request_message: object, code: str, field: str
) -> None:
    call = getattr(world.simulation, method)(request_message)
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            if isinstance(call, grpc.aio.UnaryStreamCall):
                [response async for response in call]
            else:
                await call
    assert caught.value.code == (code or "INVALID_ARGUMENT"), caught.value
    assert caught.value.field == field, caught.value
    assert field.split(".")[-1].split("[")[0] in caught.value.message


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        (recorded(9), "NOT_FOUND", "9"),
        (recorded(0, "unknown"), "NOT_FOUND", "unknown"),
        (recorded(3), "DATA_LOSS", "3.json"),
        (recorded(1), "FAILED_PRECONDITION", "no sequences to score"),
        (
            v1.RecordedComponent(
                component=component_id("attn_write_norm", 0, 0), datasets=["demo"]
            ),
            "INVALID_ARGUMENT",
            "attn_write_norm",
        ),
    ],
)
async def test_what_a_record_can_not_give(
    world: World, source: v1.RecordedComponent, code: str, words: str
) -> None:
    with pytest.raises(NeuropilError) as caught:
        await scored(world, v1.ScoreExplanationRequest(recorded_component=source, explanation="x"))
    assert caught.value.code == code, caught.value
    assert words in caught.value.message


async def test_what_is_served_later_says_so(world: World) -> None:
    bulk = v1.BulkScoreExplanationsRequest(
        resume_key="k",
        requests=[v1.ScoreExplanationRequest(recorded_component=recorded(), explanation="x")],
    )
    propose = v1.ProposeExplanationsRequest(recorded_component=recorded())
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            await world.simulation.ProposeExplanations(propose)
    assert caught.value.code == "UNIMPLEMENTED"
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            [event async for event in world.simulation.BulkScoreExplanations(bulk)]
    assert caught.value.code == "UNIMPLEMENTED"


async def test_an_answer_too_large_to_send_is_refused_at_once(world: World) -> None:
    huge = columns(*([f"w{i}"] * 1000 for i in range(200)))
    huge.activations.CopyFrom(to_tensor(np.zeros(200_000, dtype=np.float32)))
    with pytest.raises(NeuropilError) as caught:
        await scored(world, score_request(scored=huge))
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert caught.value.field == "max_sequences"


async def test_an_unreachable_record_service_is_unavailable(world: World) -> None:
    nowhere = world.deployment.model_copy(update={"services": Services(records="127.0.0.1:1")})
    async with simulation_services(nowhere) as services:
        server = await start_server(services, ServerOptions("simulation"))
        async with open_aio_channel(f"127.0.0.1:{server.port}") as channel:
            other = World(v1.SimulationStub(channel), world.health, world.dataset, nowhere)
            with pytest.raises(NeuropilError) as caught:
                await scored(
                    other,
                    v1.ScoreExplanationRequest(recorded_component=recorded(), explanation="x"),
                )
        await server.drain(1)
    assert caught.value.code == "UNAVAILABLE"


async def test_a_deadline_ends_the_computation(world: World) -> None:
    rng = np.random.default_rng(0)
    long = columns(*([f" w{n}" for n in rng.integers(0, 10**9, 400)] for _ in range(100)))
    request = v1.SimulateRequest(explanation="anything", sequences=long)
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            [response async for response in world.simulation.Simulate(request, timeout=0.5)]
    assert caught.value.code == "DEADLINE_EXCEEDED"
    small = v1.SimulateRequest(explanation="animals", sequences=columns([" lion"]))
    responses = [r async for r in world.simulation.Simulate(small, timeout=60)]
    assert len(responses) == 1


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
            "simulators: [{name: x, kind: completions, base_url: 'http://127.0.0.1:1', model: m}]",
            "simulators[0].kind: completions is not implemented in this release",
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
