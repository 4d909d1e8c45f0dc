"""Scored explanations as the record reader stores them."""

from __future__ import annotations

from neuropil.common import v1 as common
from neuropil.names import SCORING_METHODS
from neuropil.records import v1 as records
from neuropil.simulation import v1 as simulation


def put_request(
    component: common.ComponentId,
    explanation_dataset: str,
    scored: simulation.ScoredExplanation,
) -> records.PutExplanationRequest:
    """What stores a scored explanation of a component.

    Raises:
        ValueError: if explanation files have no place for scores of its method, as for judgements.
    """
    request = records.PutExplanationRequest(
        component=component,
        explanation_dataset=explanation_dataset,
        explanation=scored.explanation,
    )
    if scored.HasField("attention"):
        request.scored_attention_simulation.CopyFrom(stored_attention(scored.attention))
    elif scored.HasField("scored_simulation"):
        request.scored_simulation.CopyFrom(scored.scored_simulation)
    else:
        method = SCORING_METHODS.name(scored.method) or "an unknown method"
        raise ValueError(
            f"explanation files have no place for scores by {method}; "
            "those by simulation and attention_pairs can be stored"
        )
    return request


def stored_attention(
    scored: simulation.ScoredAttentionPairs,
) -> records.ScoredAttentionSimulation:
    """Judged token pairs of a head as the record reader stores them."""
    defined = scored.roc_auc.HasField("value")
    return records.ScoredAttentionSimulation(
        attention_simulations=[
            records.AttentionSimulation(
                tokens=each.tokens,
                token_pair_coordinates=each.pairs,
                token_pair_labels=each.labels,
                predictions=each.predictions,
            )
            for each in scored.sequences
        ],
        roc_auc_score=scored.roc_auc.value if defined else None,
    )
