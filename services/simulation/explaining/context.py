"""The context explainer: names the words and signs that a component is most active at.

It runs no model. It looks for what tells active tokens from others: words and parts of words,
what stands before or after them, how words begin or end, kinds of signs, and for attention heads
pairs of such tokens. Its sentences are those sets that predict the activations of the train split
best.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from services.simulation.explaining.evidence import Evidence, TokenEvidence, TokenPairEvidence
from services.simulation.explaining.features import token_table
from services.simulation.explaining.interface import (
    ExplanationProvenance,
    ProposalOptions,
    ProposedExplanation,
    ProposedExplanations,
)
from services.simulation.explaining.selection import feature_sets
from services.simulation.explaining.token_pairs import pair_explanations
from services.simulation.explaining.wording import sentence
from services.simulation.simulators.interface import SimulationCost
from shared.errors import FailedPrecondition

_MOST_SEQUENCES = 64
"""Sequences looked at where a request doesn't say."""
_MOST_TOKENS = 20_000

BEAMS, MOST_FEATURES, LEAST_GAIN, SUPPORT = 5, 6, 0.02, 0.25
"""Chosen by the correlations of the demo's neurons; see docs/explaining.md."""


class ContextExplainer:
    """Explains by what stands at, and around, the most active tokens."""

    kind: ClassVar[str] = "context"
    description: ClassVar[str] = (
        "Names the words, word parts, signs and neighbours that the most active tokens share; runs "
        "no language model, and doesn't know what they mean."
    )
    model = ""
    prompt_version = ""
    state = "ready"

    def __init__(self, name: str) -> None:
        self.name = name

    async def propose(self, evidence: Evidence, options: ProposalOptions) -> ProposedExplanations:
        """At most `options.count` sentences, best first; nothing in it is random.

        Raises:
            FailedPrecondition: `NOTHING_TO_EXPLAIN` where no sequence is left for it, or none has
                an activation above 0.
        """
        return await asyncio.to_thread(self._propose, evidence, options)

    def _propose(self, evidence: Evidence, options: ProposalOptions) -> ProposedExplanations:
        began = time.perf_counter()
        looked_at = limited(evidence, options.max_sequences or _MOST_SEQUENCES)
        require_activity(looked_at)
        found = _explanations(looked_at)
        shown = len(looked_at.train) + len(looked_at.others)
        explanations: dict[str, ProposedExplanation] = {}
        for text, correlation in found:
            if len(explanations) == options.count:
                break
            provenance = ExplanationProvenance(
                explainer=self.name,
                explainer_kind=self.kind,
                model="",
                prompt_version="",
                seed=options.seed,
                temperature=0.0,
                sequences_shown=shown,
                train_correlation=correlation,
            )
            explanations.setdefault(text, ProposedExplanation(text, provenance))
        if not explanations:
            raise FailedPrecondition(
                "nothing that a sentence could name tells active tokens from others in "
                f"{shown} sequences of {evidence.dataset or 'the record'}",
                reason="NO_EXPLANATION",
            )
        return ProposedExplanations(
            tuple(explanations.values()),
            dataset=evidence.dataset,
            cost=SimulationCost(seconds=time.perf_counter() - began),
        )


def _explanations(evidence: Evidence) -> Iterator[tuple[str, float]]:
    if isinstance(evidence, TokenPairEvidence):
        yield from pair_explanations(evidence.train + evidence.others)
        return
    table = token_table(evidence.train + evidence.others)
    if not table.features:
        return
    for found in feature_sets(
        table, beams=BEAMS, most=MOST_FEATURES, gain=LEAST_GAIN, support=SUPPORT
    ):
        yield sentence(found.features, table.whole_words), found.correlation


def limited(evidence: Evidence, max_sequences: int) -> Evidence:
    """At most so many sequences, those of the train split first, within the limit of tokens."""
    train = _fitting(evidence.train.tokens, max_sequences, _MOST_TOKENS)
    used = sum(len(evidence.train.tokens[position]) for position in train)
    others = _fitting(evidence.others.tokens, max_sequences - len(train), _MOST_TOKENS - used)
    if isinstance(evidence, TokenEvidence):
        return TokenEvidence(
            evidence.train.take(train), evidence.others.take(others), evidence.dataset
        )
    return TokenPairEvidence(
        evidence.train.take(train), evidence.others.take(others), evidence.dataset
    )


def require_activity(evidence: Evidence) -> None:
    """Raise FailedPrecondition, `NOTHING_TO_EXPLAIN`, where no activation is above 0."""
    parts = evidence.train.activations + evidence.others.activations
    values = np.concatenate([np.zeros(0), *parts])
    if not (values[np.isfinite(values)] > 0).any():
        source = evidence.dataset or "the record"
        raise FailedPrecondition(
            f"{source} has no sequence in its train split with a finite activation above 0; a "
            "record needs at least four top sequences",
            reason="NOTHING_TO_EXPLAIN",
        )


def _fitting(sequences: tuple[tuple[str, ...], ...], most: int, most_tokens: int) -> list[int]:
    """Positions of the first sequences that fit."""
    positions: list[int] = []
    for position, tokens in enumerate(sequences):
        if len(positions) >= most:
            break
        # The strongest sequence is looked at, whatever its length.
        if len(tokens) <= most_tokens or most_tokens == _MOST_TOKENS:
            positions.append(position)
            most_tokens -= len(tokens)
    return positions
