"""What simulation answers, as arrays and plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropil import names
from neuropil.simulation import v1
from neuropil.tensors import to_array

_SIMULATION_SCORES = ("ev_correlation", "r_squared", "absolute_deviation_explained")
_JUDGEMENT_SCORES = ("balanced_accuracy", "precision", "recall", "f1", "roc_auc")


@dataclass(frozen=True)
class Simulation:
    """Predicted activations on one sequence."""

    tokens: list[str]
    expected_activations: NDArray[Any]
    """[tokens], 0 to 10, or in activation units where a calibration was applied; NaN where a token
    got no distribution."""
    probabilities: NDArray[Any]
    """[tokens, 11], of the values 0 to 10, or of what the calibration maps them to."""
    validity: v1.ValidityReport = field(repr=False)
    """How many tokens got a distribution, and why the others did not."""
    cost: v1.SimulationCost = field(repr=False)


@dataclass(frozen=True)
class Score:
    """A score with its interval, or why there is none."""

    value: float | None
    interval: tuple[float, float] | None = None
    """95 %, by a bootstrap over sequences; None where none was computed."""
    undefined_reason: str = ""
    """For example ``constant_simulation``; empty where the score is defined."""


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
    scores: dict[str, Score]
    """On this sequence alone."""


@dataclass(frozen=True)
class Judgement:
    """A question to the judge, the right answer, and its own."""

    tokens: list[str]
    marked_positions: list[int]
    """Of the marked tokens; empty where the whole sequence was judged."""
    label: bool
    probability: float | None
    """The judge's, that it is so; None where its answer could not be read."""
    issue: str
    """Why there is no probability; empty otherwise."""


@dataclass(frozen=True)
class AttentionSequence:
    """The judged token pairs of one sequence."""

    tokens: list[str]
    pairs: NDArray[Any]
    """[pairs, 2]: positions of the attending and the attended-to token."""
    labels: NDArray[Any]
    """[pairs], 1 where the head attends strongly."""
    predictions: NDArray[Any]
    """[pairs], the judge's probability of that; NaN where its answer could not be read."""
    issues: dict[int, str]
    """Why a pair has no prediction, by its position."""


@dataclass(frozen=True)
class ScoredExplanation:
    """How well an explanation predicts a component."""

    explanation: str
    method: str
    """``simulation``, ``detection``, ``fuzzing`` or ``attention_pairs``."""
    score: float | None
    """The preferred score: the correlation, the balanced accuracy of judgements, or the area under
    the ROC curve of token pairs; None where it is undefined."""
    preferred: Score
    """The same with its interval, or with the reason why it is undefined."""
    scores: dict[str, float | None]
    """Of a simulation ev_correlation, r_squared and absolute_deviation_explained; of judgements
    balanced_accuracy, precision, recall, f1 and roc_auc; of token pairs roc_auc."""
    uncalibrated_scores: dict[str, float | None]
    """Those of a simulation before calibration, on the same sequences."""
    details: dict[str, Score]
    """All of `scores`, each with its interval or its reason."""
    sequences: list[ScoredSequence]
    """Of the method ``simulation``."""
    judgements: list[Judgement]
    """Of the methods ``detection`` and ``fuzzing``."""
    attention: list[AttentionSequence]
    """Of the method ``attention_pairs``."""
    provenance: v1.ScoreProvenance = field(repr=False)
    message: v1.ScoredExplanation = field(repr=False)
    """All of it as the service answered; `client.records.put_explanation` stores it."""


@dataclass(frozen=True)
class ProposedExplanation:
    """An explanation that an explainer proposes."""

    explanation: str
    provenance: v1.ExplanationProvenance
    train_correlation: float | None = None
    """Of what it says with the activations that it was made from; None where not computed."""


@dataclass(frozen=True)
class RejectedAnswer:
    """An answer of a language model that is no explanation."""

    reason: str
    beginning: str
    """How the answer begins."""


@dataclass(frozen=True)
class Proposals:
    """Proposed explanations, best first."""

    explanations: list[ProposedExplanation]
    dataset: str
    """Path of the dataset that the record came from."""
    cost: v1.SimulationCost
    rejected_answers: list[RejectedAnswer] = field(default_factory=list)


@dataclass(frozen=True)
class BulkProgress:
    """How far a bulk run has come."""

    completed: int
    total: int
    spent: v1.SimulationCost
    """Under this key, earlier runs included."""


@dataclass(frozen=True)
class BulkResult:
    """What became of one request of a bulk run."""

    position: int
    """In the requests, from 0."""
    scored: ScoredExplanation | None
    """None where it failed."""
    failure: str
    """Why it failed; empty otherwise."""
    failure_reason: str
    """The same for programs, for example ``NO_SEQUENCES_TO_SCORE``."""
    put: str
    """``stored``, ``failed`` or ``not_asked``."""
    put_failure: str
    reused: bool
    """Whether an earlier run of the key scored it."""
    spent: v1.SimulationCost


@dataclass(frozen=True)
class BulkSummary:
    """How a bulk run ended."""

    done: int
    failed: int
    left: int
    """Not begun, as the budget was used up."""
    reused: int
    not_put: int
    stopped_by: str
    """``tokens`` or ``calls`` of the budget; empty where the run came to its end."""
    spent: v1.SimulationCost


BulkEvent = BulkProgress | BulkResult | BulkSummary


def simulation_of(simulation: v1.SequenceSimulation, cost: v1.SimulationCost) -> Simulation:
    """A simulation as arrays."""
    return Simulation(
        tokens=list(simulation.tokens),
        expected_activations=to_array(simulation.expected_activations),
        probabilities=to_array(simulation.distribution_probabilities),
        validity=simulation.validity,
        cost=cost,
    )


def scored_of(result: v1.ScoredExplanation) -> ScoredExplanation:
    """A scored explanation as arrays."""
    details = _details(result)
    preferred = _score(result.preferred_score)
    before = {}
    if result.HasField("uncalibrated_scores"):
        before = _scores(result.uncalibrated_scores, _SIMULATION_SCORES)
    return ScoredExplanation(
        explanation=result.explanation,
        method=names.SCORING_METHODS.name(result.method),
        score=preferred.value,
        preferred=preferred,
        scores={name: score.value for name, score in details.items()},
        uncalibrated_scores={name: score.value for name, score in before.items()},
        details=details,
        sequences=[_scored_sequence(each) for each in result.scored_simulation.sequences],
        judgements=[_judgement(each) for each in result.judgements.judgements],
        attention=[_attention(each) for each in result.attention.sequences],
        provenance=result.provenance,
        message=result,
    )


def proposals_of(response: v1.ProposeExplanationsResponse) -> Proposals:
    """Proposed explanations."""
    return Proposals(
        [
            ProposedExplanation(
                each.explanation,
                each.provenance,
                each.train_correlation if each.HasField("train_correlation") else None,
            )
            for each in response.proposals
        ],
        response.dataset,
        response.cost,
        [RejectedAnswer(each.reason, each.beginning) for each in response.rejected_answers],
    )


def bulk_event_of(response: v1.BulkScoreExplanationsResponse) -> BulkEvent | None:
    """What a message of a bulk run says; None for one of a later version."""
    match response.WhichOneof("event"):
        case "progress":
            progress = response.progress
            return BulkProgress(progress.completed, progress.total, response.spent)
        case "result":
            return _bulk_result(response.result, response.spent)
        case "summary":
            summary = response.summary
            return BulkSummary(
                done=summary.done,
                failed=summary.failed,
                left=summary.left,
                reused=summary.reused,
                not_put=summary.not_put,
                stopped_by=names.BUDGET_LIMITS.name(summary.stopped_by),
                spent=response.spent,
            )
    return None


def _bulk_result(result: v1.BulkResult, spent: v1.SimulationCost) -> BulkResult:
    has_score = result.HasField("scored_explanation")
    return BulkResult(
        position=result.position,
        scored=scored_of(result.scored_explanation) if has_score else None,
        failure=result.failure,
        failure_reason=result.failure_reason,
        put=names.PUT_OUTCOMES.name(result.put),
        put_failure=result.put_failure,
        reused=result.reused,
        spent=spent,
    )


def _details(result: v1.ScoredExplanation) -> dict[str, Score]:
    if result.HasField("judgements"):
        return _scores(result.judgements, _JUDGEMENT_SCORES)
    if result.HasField("attention"):
        return {"roc_auc": _score(result.attention.roc_auc)}
    return _scores(result.scored_simulation.scores, _SIMULATION_SCORES)


def _scores(message: Any, fields: tuple[str, ...]) -> dict[str, Score]:
    return {name: _score(getattr(message, name)) for name in fields}


def _score(message: v1.Score) -> Score:
    interval = message.confidence_interval
    return Score(
        value=message.value if message.HasField("value") else None,
        interval=(
            (interval.low, interval.high) if message.HasField("confidence_interval") else None
        ),
        undefined_reason=names.UNDEFINED_REASONS.name(message.undefined_reason),
    )


def _scored_sequence(each: v1.ScoredSequenceSimulation) -> ScoredSequence:
    simulation = each.simulation
    calibrated = to_array(simulation.expected_activations)
    before = simulation.HasField("uncalibrated_expected_activations")
    return ScoredSequence(
        tokens=list(simulation.tokens),
        true_activations=to_array(each.true_activations),
        expected_activations=calibrated,
        uncalibrated_activations=(
            to_array(simulation.uncalibrated_expected_activations) if before else calibrated
        ),
        scores=_scores(each.scores, _SIMULATION_SCORES),
    )


def _judgement(each: v1.Judgement) -> Judgement:
    return Judgement(
        tokens=list(each.tokens),
        marked_positions=list(each.marked_positions),
        label=each.label,
        probability=each.probability if each.HasField("probability") else None,
        issue=each.issue,
    )


def _attention(each: v1.ScoredAttentionSequence) -> AttentionSequence:
    return AttentionSequence(
        tokens=list(each.tokens),
        pairs=to_array(each.pairs),
        labels=to_array(each.labels),
        predictions=to_array(each.predictions).astype(np.float64),
        issues=dict(each.issues),
    )
