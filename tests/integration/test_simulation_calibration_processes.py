"""A calibration that one process fits and keeps, and another, real one applies."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import yaml

from neuropil.common import v1 as common
from neuropil.simulation import v1
from neuropil.tensors import to_array, to_tensor
from services.simulation.calibration.calibrations import CalibrationKind, fit_calibration
from services.simulation.calibration.fitted import FittedCalibration, sequence_hash
from services.simulation.calibration.store import CalibrationStore
from services.simulation.state.store import open_state
from tests.load.processes import server

TOKENS = ["a", " lion", " sat"]


async def test_another_process_applies_a_kept_calibration_to_the_last_bit(tmp_path: Path) -> None:
    state = tmp_path / "state"
    rng = np.random.default_rng(0)
    simulated, values = rng.random(300) * 10, np.append(rng.random(50) * 20 - 5, np.nan)
    store = CalibrationStore(open_state(str(state)))
    kept = {}
    for kind in CalibrationKind:
        calibration = fit_calibration(kind, simulated, simulated**2 / 3 + rng.normal(size=300))
        fitted = FittedCalibration(calibration, 300, (sequence_hash(TOKENS),))
        kept[await store.put(fitted)] = fitted
    config = tmp_path / "neuropil.yaml"
    config.write_text(yaml.safe_dump({"simulation_state": str(state)}))
    arguments = ("--config", str(config), "--port", "0", "--metrics-port", "0")
    with (
        server("services.simulation", *arguments) as (address, _),
        grpc.insecure_channel(address) as channel,
    ):
        stub = v1.SimulationStub(channel)
        for calibration_id, fitted in kept.items():
            answer = stub.ApplyCalibration(
                v1.ApplyCalibrationRequest(calibration_id=calibration_id, values=to_tensor(values)),
                timeout=60,
            )
            here = fitted.calibration.apply(values)
            assert to_array(answer.values).tobytes() == here.tobytes()
            refused = scoring_refusal(stub, calibration_id)
            assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "was fitted on the sequence at position 0" in str(refused.details())


def scoring_refusal(stub: v1.SimulationStub, calibration_id: str) -> grpc.RpcError:
    """What scoring a sequence answers that the calibration was fitted on."""
    scored = common.TokenSequences(
        tokens=TOKENS,
        sequence_lengths=[len(TOKENS)],
        activations=to_tensor(np.array([0.0, 1.0, 0.0])),
    )
    request = v1.ScoreExplanationRequest(
        sequences=v1.LabeledSequences(scored_sequences=scored),
        explanation="animals",
        calibration_id=calibration_id,
    )
    try:
        list(stub.ScoreExplanation(request, timeout=60))
    except grpc.RpcError as error:
        return error
    raise AssertionError("it was scored")
