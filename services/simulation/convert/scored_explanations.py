"""Scored explanations, and how far scoring has come, as messages."""

from __future__ import annotations

import neuropil
from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from services.simulation.convert.attention_scores import attention_message
from services.simulation.convert.calibrations import calibration_message
from services.simulation.convert.scores import score_message, scores_message
from services.simulation.convert.simulations import (
    cost_message,
    report_message,
    simulation_message,
)
from services.simulation.scores.classification import (
    INTERVAL_METHOD as JUDGEMENT_INTERVAL_METHOD,
)
from services.simulation.scores.resamples import RESAMPLES
from services.simulation.scoring.attention_pairs import ScoredAttention
from services.simulation.scoring.judgement_questions import JudgingMethod
from services.simulation.scoring.judging import (
    JudgedExplanation,
    Judgement,
    JudgingProvenance,
)
from services.simulation.scoring.simulation_scoring import (
    Provenance,
    ScoredExplanation,
    ScoringProgress,
)

_JUDGING_METHODS = {
    JudgingMethod.DETECTION: v1.SCORING_METHOD_DETECTION,
    JudgingMethod.FUZZING: v1.SCORING_METHOD_FUZZING,
}


def progress_message(progress: ScoringProgress) -> v1.ScoreExplanationResponse:
    """How far scoring has come."""
    return v1.ScoreExplanationResponse(
        progress=v1.Progress(
            completed=progress.completed, total=progress.total, stage=progress.stage
        )
    )


def scored_message(
    scored: ScoredExplanation | JudgedExplanation | ScoredAttention,
    explained_by: v1.ExplanationProvenance | None,
) -> v1.ScoredExplanation:
    """A scored explanation with all that it was computed from."""
    if isinstance(scored, JudgedExplanation):
        message = _judged_message(scored)
    elif isinstance(scored, ScoredAttention):
        message = attention_message(scored)
    else:
        message = _simulated_message(scored)
    if explained_by is not None:
        message.provenance.explanation.CopyFrom(explained_by)
    if not any(score.HasField("confidence_interval") for score in _overall_scores(message)):
        message.provenance.ClearField("interval_method")
        message.provenance.ClearField("interval_resample_count")
    return message


def _overall_scores(message: v1.ScoredExplanation) -> list[v1.Score]:
    judged, three = message.judgements, message.scored_simulation.scores
    before = message.uncalibrated_scores
    return [
        *(three.ev_correlation, three.r_squared, three.absolute_deviation_explained),
        *(before.ev_correlation, before.r_squared, before.absolute_deviation_explained),
        *(judged.balanced_accuracy, judged.precision, judged.recall, judged.f1, judged.roc_auc),
        message.attention.roc_auc,
    ]


def _simulated_message(scored: ScoredExplanation) -> v1.ScoredExplanation:
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
    return v1.ScoredExplanation(
        explanation=scored.explanation,
        method=v1.SCORING_METHOD_SIMULATION,
        scored_simulation=v1.ScoredSimulation(
            sequences=sequences, scores=scores_message(scored.scores.overall)
        ),
        uncalibrated_scores=scores_message(scored.uncalibrated_scores),
        provenance=_provenance_message(scored.provenance),
        preferred_score=score_message(scored.scores.overall.correlation),
    )


def _judged_message(judged: JudgedExplanation) -> v1.ScoredExplanation:
    scores = judged.scores
    method = _JUDGING_METHODS[judged.method]
    return v1.ScoredExplanation(
        explanation=judged.explanation,
        method=method,
        judgements=v1.ScoredJudgements(
            judgements=[_judgement_message(each) for each in judged.judgements],
            balanced_accuracy=score_message(scores.balanced_accuracy),
            precision=score_message(scores.precision),
            recall=score_message(scores.recall),
            f1=score_message(scores.f1),
            roc_auc=score_message(scores.roc_auc),
            validity=report_message(judged.report),
        ),
        provenance=_judging_provenance_message(judged.provenance, method),
        preferred_score=score_message(scores.balanced_accuracy),
    )


def _judgement_message(judgement: Judgement) -> v1.Judgement:
    return v1.Judgement(
        tokens=judgement.tokens,
        marked_positions=judgement.marked,
        label=judgement.label,
        probability=judgement.probability,
        issue=judgement.issue,
    )


def _provenance_message(provenance: Provenance) -> v1.ScoreProvenance:
    return v1.ScoreProvenance(
        simulator=provenance.simulator,
        simulator_kind=provenance.simulator_kind,
        simulator_model=provenance.simulator_model,
        prompt_version=provenance.prompt_version,
        calibration=calibration_message(provenance.fitted),
        dataset=provenance.dataset,
        seed=provenance.seed,
        calibration_sequence_count=provenance.calibration_sequences,
        scored_sequence_count=provenance.scored_sequences,
        cost=cost_message(provenance.cost),
        software_version=neuropil.__version__,
        method=v1.SCORING_METHOD_SIMULATION,
        interval_method=provenance.interval_method,
        interval_resample_count=provenance.interval_resamples,
        calibration_reused=provenance.calibration_reused,
    )


def _judging_provenance_message(
    provenance: JudgingProvenance, method: v1.ScoringMethod
) -> v1.ScoreProvenance:
    return v1.ScoreProvenance(
        simulator=provenance.simulator,
        simulator_kind=provenance.simulator_kind,
        simulator_model=provenance.simulator_model,
        prompt_version=provenance.prompt_version,
        dataset=provenance.dataset,
        seed=provenance.seed,
        scored_sequence_count=provenance.scored_sequences,
        cost=cost_message(provenance.cost),
        software_version=neuropil.__version__,
        method=method,
        judge_model=provenance.judge_model,
        judge_prompt_version=provenance.judge_prompt_version,
        interval_method=JUDGEMENT_INTERVAL_METHOD,
        interval_resample_count=RESAMPLES,
        judgement_count=provenance.judgements,
    )
