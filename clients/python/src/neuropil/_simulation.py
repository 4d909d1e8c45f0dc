"""Simulation, calibration and scoring, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuropil import names
from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, translated
from neuropil.names import component_id, dataset_names
from neuropil.simulation import v1
from neuropil.tensors import to_array, to_tensor

_SCORES = ("ev_correlation", "r_squared", "absolute_deviation_explained")


@dataclass(frozen=True)
class Simulation:
    """Predicted activations on one sequence."""

    tokens: list[str]
    expected_activations: NDArray[Any]
    """[tokens], 0 to 10."""
    probabilities: NDArray[Any]
    """[tokens, 11], of the values 0 to 10."""


@dataclass(frozen=True)
class ScoredSequence:
    """Simulated and true activations of one sequence."""

    tokens: list[str]
    true_activations: NDArray[Any]
    """[tokens], in the model's units."""
    expected_activations: NDArray[Any]
    """[tokens], calibrated to the model's units."""
    uncalibrated_activations: NDArray[Any]
    """[tokens], 0 to 10."""


@dataclass(frozen=True)
class ScoredExplanation:
    """How well an explanation predicts a component."""

    explanation: str
    score: float | None
    """The preferred score, the correlation; None where it is undefined."""
    scores: dict[str, float | None]
    """ev_correlation, r_squared and absolute_deviation_explained."""
    uncalibrated_scores: dict[str, float | None]
    """The same before calibration, on the same sequences."""
    sequences: list[ScoredSequence]
    provenance: v1.ScoreProvenance
    message: v1.ScoredExplanation = field(repr=False)
    """All of it as the service answered; `client.records.put_explanation` stores it."""


class SimulationClient:
    """Simulates components from explanations and scores the simulations."""

    def __init__(self, stub: v1.SimulationStub, timeout: float) -> None:
        self.stub = stub
        """The generated stub, for what this class doesn't cover."""
        self._timeout = timeout

    def simulators(self) -> list[v1.Simulator]:
        """The simulators of the deployment."""
        with translated():
            answer = self.stub.ListSimulators(v1.ListSimulatorsRequest(), timeout=self._timeout)
        return list(answer.simulators)

    def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]], *, simulator: str = ""
    ) -> list[Simulation]:
        """Simulate an explanation on sequences of tokens.

        Raises:
            NeuropilError: INVALID_ARGUMENT, naming the field, for an empty explanation or the like.
        """
        columns = common.TokenSequences(
            tokens=[token for sequence in sequences for token in sequence],
            sequence_lengths=[len(sequence) for sequence in sequences],
        )
        request = v1.SimulateRequest(
            simulator=simulator, explanation=explanation, sequences=columns
        )
        with translated():
            return [
                Simulation(
                    tokens=list(response.simulation.tokens),
                    expected_activations=to_array(response.simulation.expected_activations),
                    probabilities=to_array(response.simulation.distribution_probabilities),
                )
                for response in self.stub.Simulate(request, timeout=self._timeout)
            ]

    def score(
        self,
        explanation: str,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        datasets: str | Sequence[str],
        *,
        simulator: str = "",
        calibration: str | None = None,
        max_sequences: int = 0,
        on_progress: Callable[[v1.Progress], None] | None = None,
    ) -> ScoredExplanation:
        """Simulate, calibrate and score an explanation of a recorded component.

        `calibration` is none, linear or percentile; None means the deployment's default.
        `datasets` are tried in order; a single one need not be in a list.

        Raises:
            ValueError: if a name is unknown.
            NeuropilError: NOT_FOUND where no dataset has the component.
        """
        request = v1.ScoreExplanationRequest(
            recorded_component=v1.RecordedComponent(
                component=component_id(derived_scalar_type, layer_index, component_index),
                datasets=dataset_names(datasets),
            ),
            explanation=explanation,
            simulator=simulator,
            max_sequences=max_sequences,
        )
        if calibration is not None:
            request.calibration_kind = names.CALIBRATION_KINDS.value(calibration)
        result: v1.ScoredExplanation | None = None
        with translated():
            # Read to the end, although the result comes last: the server sees the call succeed.
            for response in self.stub.ScoreExplanation(request, timeout=self._timeout):
                if response.HasField("result"):
                    result = response.result
                elif on_progress is not None:
                    on_progress(response.progress)
        if result is None:
            raise NeuropilError("DATA_LOSS", "the answer ended before the result")
        return _scored(result)

    def fit_calibration(
        self, kind: str, simulated: ArrayLike, true_activations: ArrayLike
    ) -> v1.Calibration:
        """Fit a calibration to simulated and true activations, [N] each.

        Raises:
            ValueError: if there is no such kind.
            NeuropilError: INVALID_ARGUMENT where lengths differ or a value is not finite.
        """
        request = v1.FitCalibrationRequest(
            kind=names.CALIBRATION_KINDS.value(kind),
            simulated=to_tensor(np.asarray(simulated, dtype=np.float64)),
            true_activations=to_tensor(np.asarray(true_activations, dtype=np.float64)),
        )
        with translated():
            return self.stub.FitCalibration(request, timeout=self._timeout).calibration

    def apply_calibration(self, calibration: v1.Calibration, values: ArrayLike) -> NDArray[Any]:
        """Map simulated values, of any shape, to activation units."""
        request = v1.ApplyCalibrationRequest(
            calibration=calibration, values=to_tensor(np.asarray(values, dtype=np.float64))
        )
        with translated():
            return to_array(self.stub.ApplyCalibration(request, timeout=self._timeout).values)


def _values(scores: v1.Scores) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in _SCORES:
        score: v1.Score = getattr(scores, name)
        found[name] = score.value if score.HasField("value") else None
    return found


def _scored(result: v1.ScoredExplanation) -> ScoredExplanation:
    sequences = []
    for each in result.scored_simulation.sequences:
        simulation = each.simulation
        calibrated = to_array(simulation.expected_activations)
        before = simulation.HasField("uncalibrated_expected_activations")
        sequences.append(
            ScoredSequence(
                tokens=list(simulation.tokens),
                true_activations=to_array(each.true_activations),
                expected_activations=calibrated,
                uncalibrated_activations=(
                    to_array(simulation.uncalibrated_expected_activations) if before else calibrated
                ),
            )
        )
    preferred = result.preferred_score
    return ScoredExplanation(
        explanation=result.explanation,
        score=preferred.value if preferred.HasField("value") else None,
        scores=_values(result.scored_simulation.scores),
        uncalibrated_scores=_values(result.uncalibrated_scores),
        sequences=sequences,
        provenance=result.provenance,
        message=result,
    )
