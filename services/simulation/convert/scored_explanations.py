"""Scored explanations, and how far scoring has come, as messages."""

from __future__ import annotations

import neuropil
from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from services.simulation.convert.calibrations import calibration_message
from services.simulation.convert.scores import score_message, scores_message
from services.simulation.convert.simulations import cost_message, simulation_message
from services.simulation.scoring.simulation_scoring import (
    Provenance,
    ScoredExplanation,
    ScoringProgress,
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
