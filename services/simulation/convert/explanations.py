"""Explainers and what they propose, as messages."""

from __future__ import annotations

from neuropil.simulation import v1
from services.simulation.convert.simulations import cost_message
from services.simulation.explaining.interface import (
    Explainer,
    ExplanationProvenance,
    ProposalOptions,
    ProposedExplanations,
)


def explainer_message(explainer: Explainer, *, is_default: bool) -> v1.Explainer:
    """An explainer of the deployment."""
    return v1.Explainer(
        name=explainer.name,
        kind=explainer.kind,
        model=explainer.model,
        prompt_version=explainer.prompt_version,
        is_default=is_default,
        description=explainer.description,
        state=explainer.state,
    )


def proposal_options(message: v1.ProposeExplanationsRequest) -> ProposalOptions:
    """How explanations are to be proposed; a count of 0 means 1."""
    return ProposalOptions(
        count=message.count or 1,
        seed=message.seed,
        temperature=message.temperature if message.HasField("temperature") else None,
        max_sequences=message.max_sequences,
    )


def proposals_message(proposed: ProposedExplanations) -> v1.ProposeExplanationsResponse:
    """What was proposed, best first."""
    return v1.ProposeExplanationsResponse(
        explanations=[each.text for each in proposed.explanations],
        dataset=proposed.dataset,
        cost=cost_message(proposed.cost),
        proposals=[
            v1.ProposedExplanation(
                explanation=each.text,
                provenance=_provenance_message(each.provenance),
                train_correlation=each.provenance.train_correlation,
            )
            for each in proposed.explanations
        ],
        rejected_answers=[
            v1.RejectedAnswer(reason=issue.reason, beginning=issue.answer)
            for issue in proposed.issues
        ],
    )


def _provenance_message(provenance: ExplanationProvenance) -> v1.ExplanationProvenance:
    return v1.ExplanationProvenance(
        explainer=provenance.explainer,
        explainer_kind=provenance.explainer_kind,
        model=provenance.model,
        prompt_version=provenance.prompt_version,
        seed=provenance.seed,
        sequence_count=provenance.sequences_shown,
        temperature=provenance.temperature,
    )
