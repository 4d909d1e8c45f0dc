"""Messages of the contract as the domain's data, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import neuropil
from neuropil.common import v1 as common
from neuropil.names import ACTIVATION_SCALES
from neuropil.simulation import v1
from neuropil.tensors import to_array, to_tensor
from services.simulation.calibration.calibrations import (
    Calibration,
    CalibrationKind,
    LinearCalibration,
    NoCalibration,
    PercentileCalibration,
)
from services.simulation.errors import InvalidInput
from services.simulation.scores.simulation_scores import Score, ScoreTriple, UndefinedReason
from services.simulation.scoring.labeled_sequences import LabeledSequences, Tokens, checked_ends
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs
from services.simulation.scoring.simulation_scoring import (
    Provenance,
    ScoredExplanation,
    ScoringProgress,
)
from services.simulation.sequence_simulation import SequenceSimulation
from services.simulation.simulators.interface import SimulationCost, ValidityReport
from shared.errors import Unimplemented

_KINDS = {
    v1.CALIBRATION_KIND_NONE: CalibrationKind.NONE,
    v1.CALIBRATION_KIND_LINEAR: CalibrationKind.LINEAR,
    v1.CALIBRATION_KIND_PERCENTILE: CalibrationKind.PERCENTILE,
}
_REASONS = {
    UndefinedReason.UNDEFINED_EMPTY: v1.UNDEFINED_REASON_EMPTY,
    UndefinedReason.UNDEFINED_SINGLE_TOKEN: v1.UNDEFINED_REASON_SINGLE_TOKEN,
    UndefinedReason.UNDEFINED_CONSTANT_SIMULATION: v1.UNDEFINED_REASON_CONSTANT_SIMULATION,
    UndefinedReason.UNDEFINED_CONSTANT_ACTIVATIONS: v1.UNDEFINED_REASON_CONSTANT_ACTIVATIONS,
    UndefinedReason.UNDEFINED_NON_FINITE_INPUT: v1.UNDEFINED_REASON_NON_FINITE_INPUT,
    UndefinedReason.UNDEFINED_ZERO_ACTIVATIONS: v1.UNDEFINED_REASON_ZERO_ACTIVATIONS,
    UndefinedReason.UNDEFINED_OVERFLOW: v1.UNDEFINED_REASON_OUT_OF_RANGE,
}


def array_of(tensor: common.Tensor, field: str) -> NDArray[np.float64]:
    """A tensor as float64, of any shape; InvalidInput, naming `field`, where it can't be read."""
    try:
        return to_array(tensor).astype(np.float64)
    except ValueError as error:
        raise InvalidInput(f"{field}: {error}", field=field) from error


def vector_of(tensor: common.Tensor, field: str) -> NDArray[np.float64]:
    """A tensor of rank 1 as float64; InvalidInput, naming `field`, where it isn't one."""
    array = array_of(tensor, field)
    if array.ndim != 1:
        raise InvalidInput(
            f"{field} has shape {list(array.shape)}; one number a token is needed", field=field
        )
    return array


def tokens_of(message: common.TokenSequences, field: str) -> tuple[Tokens, ...]:
    """The tokens of each sequence; InvalidInput where lengths and tokens don't agree."""
    tokens = message.tokens
    ends = checked_ends(message.sequence_lengths, len(tokens), field)
    starts = [0, *ends[:-1]]
    return tuple(tuple(tokens[start:end]) for start, end in zip(starts, ends, strict=False))


def labeled_sequences(message: common.TokenSequences, field: str) -> LabeledSequences:
    """Sequences with true activations; InvalidInput where the columns don't agree."""
    if not message.tokens and not message.HasField("activations"):
        return LabeledSequences(
            tokens_of(message, field), tuple(np.zeros(0) for _ in message.sequence_lengths)
        )
    if not message.HasField("activations"):
        raise InvalidInput(
            f"{field}.activations is missing; one number a token is needed",
            field=f"{field}.activations",
        )
    return LabeledSequences.from_columns(
        message.tokens,
        message.sequence_lengths,
        vector_of(message.activations, f"{field}.activations"),
        field,
    )


def labeled_token_pairs(message: common.TokenPairSequences, field: str) -> LabeledTokenPairs:
    """Sequences with true activations of token pairs; InvalidInput where columns don't agree."""
    has_values = message.HasField("activations")
    return LabeledTokenPairs.from_columns(
        message.tokens,
        message.sequence_lengths,
        message.attended_to_caps,
        vector_of(message.activations, f"{field}.activations") if has_values else np.zeros(0),
        field,
    )


def kind_of(kind: int, default: CalibrationKind, field: str) -> CalibrationKind:
    """The kind that a request means; unset is `default`.

    Raises:
        Unimplemented: a kind of a later release.
    """
    if kind == v1.CALIBRATION_KIND_UNSPECIFIED:
        return default
    known = _KINDS.get(kind)  # type: ignore[call-overload]
    if known is None:
        raise Unimplemented(
            f"{field}: isotonic calibration is not served by this release", field=field
        )
    return CalibrationKind(known)


def calibration_of(message: v1.Calibration, field: str) -> Calibration:
    """A stored calibration.

    Raises:
        InvalidInput: naming the field where it doesn't hold what its kind needs.
        Unimplemented: a kind of a later release.
    """
    if message.kind == v1.CALIBRATION_KIND_UNSPECIFIED:
        raise InvalidInput(f"{field}.kind is not set", field=f"{field}.kind")
    kind = kind_of(message.kind, CalibrationKind.NONE, f"{field}.kind")
    held = message.WhichOneof("parameters")
    needed = None if kind is CalibrationKind.NONE else kind.value
    if held != needed:
        raise InvalidInput(
            f"{field} of kind {kind} needs {f'{needed} parameters' if needed else 'no parameters'}"
            f", but has {f'{held} ones' if held else 'none'}",
            field=f"{field}.{needed or held}",
        )
    if kind is CalibrationKind.LINEAR:
        return LinearCalibration(message.linear.slope, message.linear.intercept)
    if kind is CalibrationKind.PERCENTILE:
        name = f"{field}.percentile"
        simulated = vector_of(message.percentile.simulated, f"{name}.simulated")
        calibrated = vector_of(message.percentile.calibrated, f"{name}.calibrated")
        try:
            return PercentileCalibration(simulated, calibrated)
        except InvalidInput as error:
            raise InvalidInput(
                f"{name}.{error.message}", field=f"{name}.{error.field}", reason=error.reason
            ) from error
    return NoCalibration()


def calibration_message(calibration: Calibration, fitted_tokens: int) -> v1.Calibration:
    """A calibration to be stored or sent."""
    message = v1.Calibration(
        kind=next(key for key, kind in _KINDS.items() if kind is calibration.kind),
        fitted_token_count=fitted_tokens,
    )
    if isinstance(calibration, LinearCalibration):
        message.linear.slope = calibration.slope
        message.linear.intercept = calibration.intercept
    elif isinstance(calibration, PercentileCalibration):
        message.percentile.simulated.CopyFrom(to_tensor(calibration.simulated))
        message.percentile.calibrated.CopyFrom(to_tensor(calibration.calibrated))
    return message


def simulation_message(
    simulation: SequenceSimulation, report: ValidityReport
) -> v1.SequenceSimulation:
    """A sequence's simulation; probabilities go out in single precision."""
    raw = simulation.uncalibrated_simulation
    before: dict[str, Any] = {}
    if raw is not None:
        before = {
            "uncalibrated_expected_activations": to_tensor(raw.expected_activations),
            "uncalibrated_distribution_values": to_tensor(raw.distribution_values),
        }
    return v1.SequenceSimulation(
        tokens=simulation.tokens,
        expected_activations=to_tensor(simulation.expected_activations),
        activation_scale=ACTIVATION_SCALES.value(simulation.activation_scale),
        distribution_probabilities=to_tensor(
            simulation.distribution_probabilities.astype(np.float32)
        ),
        distribution_values=to_tensor(simulation.distribution_values),
        validity=report_message(report),
        **before,
    )


def report_message(report: ValidityReport) -> v1.ValidityReport:
    """How far a simulation can be relied on."""
    return v1.ValidityReport(
        valid_token_count=report.valid,
        missing_token_count=report.missing,
        malformed_token_count=report.malformed,
        token_count_by_reason=dict(report.tokens_by_reason),
    )


def cost_message(cost: SimulationCost) -> v1.SimulationCost:
    """What a simulation cost."""
    return v1.SimulationCost(
        call_count=cost.calls,
        prompt_tokens_computed=cost.prompt_tokens_computed,
        prompt_tokens_reused=cost.prompt_tokens_reused,
        completion_tokens=cost.completion_tokens,
        seconds=cost.seconds,
    )


def score_message(score: Score) -> v1.Score:
    """A score, or why there is none."""
    if score.reason is not None:
        return v1.Score(undefined_reason=_REASONS[score.reason])
    return v1.Score(value=score.value)


def scores_message(scores: ScoreTriple) -> v1.Scores:
    """The three scores."""
    return v1.Scores(
        ev_correlation=score_message(scores.correlation),
        r_squared=score_message(scores.rsquared),
        absolute_deviation_explained=score_message(scores.absolute_dev_explained),
    )


def progress_message(progress: ScoringProgress) -> v1.ScoreExplanationResponse:
    """How far scoring has come."""
    return v1.ScoreExplanationResponse(
        progress=v1.Progress(
            completed=progress.completed, total=progress.total, stage=progress.stage
        )
    )


def result_message(scored: ScoredExplanation) -> v1.ScoreExplanationResponse:
    """A scored explanation with all that it was computed from."""
    sequences = [
        v1.ScoredSequenceSimulation(
            simulation=simulation_message(simulation, report),
            true_activations=to_tensor(true),
            scores=scores_message(scored.scores[position]),
        )
        for position, (simulation, report, true) in enumerate(
            zip(scored.simulations, scored.reports, scored.true_activations, strict=True)
        )
    ]
    return v1.ScoreExplanationResponse(
        result=v1.ScoredExplanation(
            explanation=scored.explanation,
            scored_simulation=v1.ScoredSimulation(
                sequences=sequences, scores=scores_message(scored.scores.overall)
            ),
            uncalibrated_scores=scores_message(scored.uncalibrated_scores),
            provenance=_provenance_message(scored.provenance),
            preferred_score=score_message(scored.scores.overall.correlation),
        )
    )


def _provenance_message(provenance: Provenance) -> v1.ScoreProvenance:
    return v1.ScoreProvenance(
        simulator=provenance.simulator,
        simulator_kind=provenance.simulator_kind,
        simulator_model=provenance.simulator_model,
        prompt_version=provenance.prompt_version,
        calibration=calibration_message(provenance.calibration, provenance.fitted_tokens),
        dataset=provenance.dataset,
        seed=provenance.seed,
        calibration_sequence_count=provenance.calibration_sequences,
        scored_sequence_count=provenance.scored_sequences,
        cost=cost_message(provenance.cost),
        software_version=neuropil.__version__,
    )
