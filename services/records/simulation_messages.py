"""Stored simulations as messages of the contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from neuropil.common import v1 as common
from neuropil.names import ACTIVATION_SCALES
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_tensor
from services.records.convert import explanation_message
from services.records.explanations import explanations_of
from services.records.reply_sizes import reply_too_large
from services.records.storage.file_store import MAX_FILE_BYTES
from services.records.storage.folders import Folder
from shared.formats.decoding import SimulationResults
from shared.formats.simulations import (
    AttentionSimulation,
    AttentionSimulationResults,
    ScoredAttentionSimulation,
    ScoredSequenceSimulation,
    ScoredSimulation,
    SequenceSimulation,
    finite_or_none,
)

# A number of two characters has eight bytes in an answer.
_MAX_RESULT_BYTES = 4 * MAX_FILE_BYTES


def serialized_results(
    results: SimulationResults, folder: Folder, source: str, max_bytes: int
) -> list[bytes]:
    """One serialized message for each explanation of the file `source`, in its order.

    ResourceExhausted where one would have more than `max_bytes`, or all of them together far more
    than a file can.
    """
    messages: list[bytes] = []
    size = 0
    for message in _result_messages(results, folder, source, max_bytes):
        if (length := message.ByteSize()) > max_bytes:
            raise reply_too_large(f"An explanation of {source}", length, max_bytes)
        messages.append(message.SerializeToString())
        size += length
        if size > _MAX_RESULT_BYTES:
            raise reply_too_large(f"All of {source}", size, _MAX_RESULT_BYTES)
    return messages


def _result_messages(
    results: SimulationResults, folder: Folder, source: str, max_bytes: int
) -> Iterator[v1.GetScoredSimulationsResponse]:
    explanations = [explanation_message(each) for each in explanations_of(results, folder)]
    if isinstance(results, AttentionSimulationResults):
        for pairs, explanation in zip(results.scored_explanations, explanations, strict=True):
            yield v1.GetScoredSimulationsResponse(
                explanation=explanation,
                scored_attention_simulation=_scored_attention_simulation(
                    pairs.scored_attention_simulation
                ),
            )
    else:
        for scored, explanation in zip(results.scored_explanations, explanations, strict=True):
            yield v1.GetScoredSimulationsResponse(
                explanation=explanation,
                scored_simulation=_scored_simulation(scored.scored_simulation, source, max_bytes),
            )


def _scored_simulation(
    scored: ScoredSimulation, source: str, max_bytes: int
) -> simulation.ScoredSimulation:
    message = simulation.ScoredSimulation(scores=_scores(scored))
    size = 0
    for each in scored.scored_sequence_simulations:
        sequence = simulation.ScoredSequenceSimulation(
            simulation=_sequence_simulation(each.sequence_simulation),
            true_activations=to_tensor(_array(each.true_activations)),
            scores=_scores(each),
        )
        # Looked at one by one: all of them may have far more than their file.
        size += sequence.ByteSize()
        if size > max_bytes:
            raise reply_too_large(f"An explanation of {source}", size, max_bytes)
        message.sequences.append(sequence)
    return message


def _scores(scored: ScoredSimulation | ScoredSequenceSimulation) -> simulation.Scores:
    def score(value: float | None) -> simulation.Score:
        return simulation.Score(value=finite_or_none(value))

    return simulation.Scores(
        ev_correlation=score(scored.ev_correlation_score),
        r_squared=score(scored.rsquared_score),
        absolute_deviation_explained=score(scored.absolute_dev_explained_score),
    )


def _sequence_simulation(stored: SequenceSimulation) -> simulation.SequenceSimulation:
    before = stored.uncalibrated_simulation
    return simulation.SequenceSimulation(
        tokens=stored.tokens,
        expected_activations=to_tensor(_array(stored.expected_activations)),
        activation_scale=ACTIVATION_SCALES.value(stored.activation_scale),
        distribution_probabilities=_table(stored.distribution_probabilities),
        distribution_values=_values(stored.distribution_values),
        uncalibrated_expected_activations=(
            to_tensor(_array(before.expected_activations)) if before else None
        ),
        uncalibrated_distribution_values=_values(before.distribution_values) if before else None,
    )


def _values(rows: Sequence[Sequence[float]]) -> common.Tensor | None:
    """[values] where every token has the same ones, else [tokens, values]."""
    if rows and rows[0] and all(row == rows[0] for row in rows):
        return to_tensor(_array(rows[0]))
    return _table(rows)


def _table(rows: Sequence[Sequence[float]]) -> common.Tensor | None:
    """[rows, longest], shorter rows ending with NaN; None where all are empty."""
    longest = max((len(row) for row in rows), default=0)
    if longest == 0:
        return None
    size = 8 * longest * len(rows)
    if size > MAX_FILE_BYTES:
        # Short rows beside a long one: the table has far more than the file.
        what = f"A distribution of {len(rows)} tokens and up to {longest} values"
        raise reply_too_large(what, size, MAX_FILE_BYTES)
    table = np.full((len(rows), longest), np.nan)
    for position, row in enumerate(rows):
        table[position, : len(row)] = row
    return to_tensor(table)


def _scored_attention_simulation(
    scored: ScoredAttentionSimulation,
) -> v1.ScoredAttentionSimulation:
    """A file has an entry a token pair; neighbours of the same sequence become one message."""
    groups = groupby(scored.attention_simulations, key=lambda each: each.tokens)
    return v1.ScoredAttentionSimulation(
        attention_simulations=[
            _attention_simulation(tokens, list(pairs)) for tokens, pairs in groups
        ],
        roc_auc_score=scored.get_preferred_score(),
    )


def _attention_simulation(
    tokens: list[str], pairs: list[AttentionSimulation]
) -> v1.AttentionSimulation:
    coordinates = np.array([pair.token_pair_coords for pair in pairs], dtype=np.int64)
    labels = np.array([pair.token_pair_label for pair in pairs], dtype=np.int64)
    return v1.AttentionSimulation(
        tokens=tokens,
        token_pair_coordinates=to_tensor(coordinates),
        token_pair_labels=to_tensor(labels),
        predictions=to_tensor(_array([pair.simulation_prediction for pair in pairs])),
    )


def _array(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)
