"""What the simulation service refuses, and what the error says; over real sockets."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from neuropil.channel import open_aio_channel
from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, atranslated
from neuropil.names import component_id
from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from services.simulation.app import simulation_services
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Services
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
        (
            "Simulate",
            v1.SimulateRequest(explanation="x", sequences=columns(["a"], ["b", "é" * 10_001])),
            "RESOURCE_EXHAUSTED",
            "sequences[1]",
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
            score_request(method=v1.SCORING_METHOD_ATTENTION_PAIRS),
            "",
            "method",
        ),
        (
            "ScoreExplanation",
            score_request(calibration_id="cal-" + "0" * 40),
            "",
            "calibration_id",
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
            "FAILED_PRECONDITION",
            "runs no language model",
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
