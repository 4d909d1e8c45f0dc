"""Scores of attention heads as messages."""

from __future__ import annotations

import numpy as np

import neuropil
from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from services.simulation.convert.scores import score_message
from services.simulation.convert.simulations import cost_message, report_message
from services.simulation.scores.classification import INTERVAL_METHOD
from services.simulation.scores.resamples import RESAMPLES
from services.simulation.scoring.attention_pairs import (
    AttentionProvenance,
    PredictedPair,
    ScoredAttention,
)
from services.simulation.scoring.labeled_sequences import Tokens


def attention_message(scored: ScoredAttention) -> v1.ScoredExplanation:
    """A scored explanation of a head, with every pair that was asked about."""
    by_sequence: dict[int, list[PredictedPair]] = {}
    for each in scored.pairs:
        by_sequence.setdefault(each.pair.sequence, []).append(each)
    return v1.ScoredExplanation(
        explanation=scored.explanation,
        method=v1.SCORING_METHOD_ATTENTION_PAIRS,
        attention=v1.ScoredAttentionPairs(
            sequences=[
                _sequence_message(scored.sequences[position], by_sequence[position])
                for position in sorted(by_sequence)
            ],
            roc_auc=score_message(scored.roc_auc),
            validity=report_message(scored.report),
        ),
        provenance=_provenance_message(scored.provenance),
        preferred_score=score_message(scored.roc_auc),
    )


def _sequence_message(tokens: Tokens, predicted: list[PredictedPair]) -> v1.ScoredAttentionSequence:
    return v1.ScoredAttentionSequence(
        tokens=tokens,
        pairs=to_tensor(
            np.asarray(
                [(each.pair.attending, each.pair.attended) for each in predicted], dtype=np.int64
            )
        ),
        labels=to_tensor(np.asarray([each.pair.label for each in predicted], dtype=np.int64)),
        predictions=to_tensor(
            np.asarray(
                [np.nan if each.prediction is None else each.prediction for each in predicted]
            )
        ),
        issues={
            position: each.issue
            for position, each in enumerate(predicted)
            if each.prediction is None
        },
    )


def _provenance_message(provenance: AttentionProvenance) -> v1.ScoreProvenance:
    return v1.ScoreProvenance(
        simulator=provenance.simulator,
        simulator_kind=provenance.simulator_kind,
        simulator_model=provenance.simulator_model,
        dataset=provenance.dataset,
        seed=provenance.seed,
        scored_sequence_count=provenance.scored_sequences,
        cost=cost_message(provenance.cost),
        software_version=neuropil.__version__,
        method=v1.SCORING_METHOD_ATTENTION_PAIRS,
        judge_model=provenance.judge_model,
        judge_prompt_version=provenance.judge_prompt_version,
        interval_method=INTERVAL_METHOD,
        interval_resample_count=RESAMPLES,
        pair_count=provenance.pairs,
    )
