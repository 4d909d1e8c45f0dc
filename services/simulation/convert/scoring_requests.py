"""What is asked to be scored, from messages."""

from __future__ import annotations

from neuropil.simulation import v1
from services.simulation.convert.arrays import labeled_sequences
from services.simulation.convert.calibrations import calibration_of, kind_of
from services.simulation.scoring.attention_pairs import DEFAULT_PAIRS_PER_SEQUENCE
from services.simulation.scoring.judged_choices import DEFAULT_LOW_ACTIVATION
from services.simulation.scoring.judgement_questions import DEFAULT_MAX_JUDGEMENTS
from services.simulation.scoring.requests import GivenSequences, ScoringMethod, ScoringRequest
from services.simulation.simulators.interface import DEFAULT_MIN_COVERAGE

METHODS = {
    v1.SCORING_METHOD_SIMULATION: ScoringMethod.SIMULATION,
    v1.SCORING_METHOD_DETECTION: ScoringMethod.DETECTION,
    v1.SCORING_METHOD_FUZZING: ScoringMethod.FUZZING,
    v1.SCORING_METHOD_ATTENTION_PAIRS: ScoringMethod.ATTENTION_PAIRS,
}


def scoring_request(message: v1.ScoreExplanationRequest) -> ScoringRequest:
    """The request; what is 0 or unset is the service's default.

    Raises:
        InvalidInput: naming the field, where sequences or the calibration can't be read.
    """
    return ScoringRequest(
        explanation=message.explanation,
        source=_source(message),
        simulator=message.simulator,
        method=METHODS.get(message.method),
        calibration_kind=kind_of(message.calibration_kind),
        calibration=(
            calibration_of(message.calibration, "calibration")
            if message.HasField("calibration")
            else None
        ),
        calibration_id=message.calibration_id,
        max_sequences=message.max_sequences,
        seed=message.seed,
        min_coverage=message.min_coverage or DEFAULT_MIN_COVERAGE,
        max_judgements=message.max_judgements or DEFAULT_MAX_JUDGEMENTS,
        pairs_per_sequence=message.pairs_per_sequence or DEFAULT_PAIRS_PER_SEQUENCE,
        low_activation_threshold=message.low_activation_threshold or DEFAULT_LOW_ACTIVATION,
        explained_by=(
            message.explanation_provenance if message.HasField("explanation_provenance") else None
        ),
    )


def _source(message: v1.ScoreExplanationRequest) -> v1.RecordedComponent | GivenSequences:
    if message.WhichOneof("source") == "recorded_component":
        return message.recorded_component
    given = message.sequences
    return GivenSequences(
        labeled_sequences(given.calibration_sequences, "sequences.calibration_sequences"),
        labeled_sequences(given.scored_sequences, "sequences.scored_sequences"),
    )
