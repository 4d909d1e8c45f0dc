"""What the calls of the simulation service refuse, and which field they name; over sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from tests.integration.simulation_kinds import (
    HEAD,
    World,
    recorded,
    refusal,
    request,
    serving_kinds,
)
from tests.integration.simulation_running import columns

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.torch]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with serving_kinds(tmp_path_factory) as running:
        yield running


async def test_without_a_place_for_state_the_setting_is_named(world: World) -> None:
    calibration = v1.Calibration(kind=v1.CALIBRATION_KIND_NONE)
    async with world.another(
        simulation_state=None,
        simulators=world.deployment.simulators[:1],
        explainers=world.deployment.explainers[:1],
    ) as stub:
        for call in (
            stub.BulkScoreExplanations(
                v1.BulkScoreExplanationsRequest(resume_key="k", requests=[request()])
            ),
            stub.StoreCalibration(v1.StoreCalibrationRequest(calibration=calibration)),
            stub.GetCalibration(v1.GetCalibrationRequest(calibration_id=f"cal-{'0' * 40}")),
        ):
            error = await refusal(call)
            assert (error.code, error.reason) == ("FAILED_PRECONDITION", "STATE_NOT_CONFIGURED")
            assert "simulation_state" in error.message


LINE = v1.Calibration(
    kind=v1.CALIBRATION_KIND_LINEAR, linear=v1.LinearCalibration(slope=1.0, intercept=0.0)
)
NO_ID = f"cal-{'0' * 40}"
GIVEN = v1.LabeledSequences(scored_sequences=columns(["a"]))


@pytest.mark.parametrize(
    ("method", "message", "code", "reason", "field"),
    [
        (
            "SimulateExplanations",
            v1.SimulateExplanationsRequest(explanations=["x", " "], tokens=["a"]),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "explanations[1]",
        ),
        (
            "SimulateExplanations",
            v1.SimulateExplanationsRequest(explanations=["x" * 20_000], tokens=["a"]),
            "RESOURCE_EXHAUSTED",
            "EXPLANATION_TOO_LONG",
            "explanations[0]",
        ),
        (
            "SimulateExplanations",
            v1.SimulateExplanationsRequest(explanations=["x"] * 200, tokens=["a"] * 3000),
            "RESOURCE_EXHAUSTED",
            "TOO_MANY_TOKENS",
            "tokens",
        ),
        (
            "SimulateExplanations",
            v1.SimulateExplanationsRequest(explanations=["x"], tokens=["a", "b" * 10_001]),
            "RESOURCE_EXHAUSTED",
            "TOKEN_TOO_LONG",
            "tokens",
        ),
        (
            "SimulateExplanations",
            v1.SimulateExplanationsRequest(explanations=["x"] * 200, tokens=["b" * 5_000] * 5),
            "RESOURCE_EXHAUSTED",
            "TOO_MANY_TOKENS",
            "tokens",
        ),
        (
            "SimulateExplanations",
            v1.SimulateExplanationsRequest(explanations=["x"], tokens=["a"], simulator="other"),
            "INVALID_ARGUMENT",
            "UNKNOWN_SIMULATOR",
            "simulator",
        ),
        (
            "FitCalibration",
            v1.FitCalibrationRequest(
                simulated=to_tensor(np.zeros(2)),
                true_activations=to_tensor(np.zeros(2)),
                sequences=columns(["a", "b", "c"]),
            ),
            "INVALID_ARGUMENT",
            "LENGTHS_DIFFER",
            "simulated",
        ),
        (
            "ApplyCalibration",
            v1.ApplyCalibrationRequest(values=to_tensor(np.zeros(1))),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "calibration",
        ),
        (
            "ApplyCalibration",
            v1.ApplyCalibrationRequest(
                calibration=LINE, calibration_id=NO_ID, values=to_tensor(np.zeros(1))
            ),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "calibration_id",
        ),
        (
            "GetCalibration",
            v1.GetCalibrationRequest(calibration_id=NO_ID),
            "NOT_FOUND",
            "CALIBRATION_NOT_FOUND",
            "calibration_id",
        ),
        (
            "GetCalibration",
            v1.GetCalibrationRequest(calibration_id="../../etc/passwd"),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "calibration_id",
        ),
        (
            "ScoreExplanation",
            request(method=v1.SCORING_METHOD_ATTENTION_PAIRS),
            "INVALID_ARGUMENT",
            "METHOD_DOES_NOT_FIT",
            "method",
        ),
        (
            "ScoreExplanation",
            request(HEAD, method=v1.SCORING_METHOD_FUZZING),
            "INVALID_ARGUMENT",
            "METHOD_DOES_NOT_FIT",
            "method",
        ),
        (
            "ScoreExplanation",
            request(method=v1.SCORING_METHOD_FUZZING, max_judgements=1),
            "INVALID_ARGUMENT",
            "OUT_OF_RANGE",
            "max_judgements",
        ),
        (
            "ScoreExplanation",
            request(calibration=LINE, method=v1.SCORING_METHOD_DETECTION),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "calibration",
        ),
        (
            "ScoreExplanation",
            request(calibration=LINE, calibration_kind=v1.CALIBRATION_KIND_NONE),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "calibration_kind",
        ),
        (
            "FitCalibration",
            v1.FitCalibrationRequest(
                kind=v1.CALIBRATION_KIND_NONE,
                simulated=to_tensor(np.zeros(3)),
                true_activations=to_tensor(np.zeros(1)),
            ),
            "INVALID_ARGUMENT",
            "LENGTHS_DIFFER",
            "true_activations",
        ),
        (
            "FitCalibration",
            v1.FitCalibrationRequest(
                kind=v1.CALIBRATION_KIND_NONE,
                simulated=to_tensor(np.full(1, np.nan)),
                true_activations=to_tensor(np.zeros(1)),
            ),
            "INVALID_ARGUMENT",
            "NON_FINITE_NUMBER",
            "simulated[0]",
        ),
        (
            "ProposeExplanations",
            v1.ProposeExplanationsRequest(recorded_component=recorded(), explainer="other"),
            "INVALID_ARGUMENT",
            "UNKNOWN_EXPLAINER",
            "explainer",
        ),
        (
            "BulkScoreExplanations",
            v1.BulkScoreExplanationsRequest(
                resume_key="sequences",
                requests=[v1.ScoreExplanationRequest(explanation="x", sequences=GIVEN)],
                explanation_dataset="/somewhere",
            ),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "requests[0].recorded_component",
        ),
    ],
)
async def test_what_can_not_be_right_names_the_field(
    world: World, method: str, message: Any, code: str, reason: str, field: str
) -> None:
    error = await refusal(getattr(world.simulation, method)(message))
    assert (error.code, error.reason, error.field) == (code, reason, field), error.message
