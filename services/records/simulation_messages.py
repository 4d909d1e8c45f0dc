"""Stored simulations as messages of the contract, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropil.common import v1 as common
from neuropil.names import ACTIVATION_SCALES
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_array, to_tensor
from services.records.convert import explanation_message
from services.records.explanations import explanations_of
from services.records.reply_sizes import reply_too_large
from services.records.storage.failures import FILE_TOO_LARGE
from services.records.storage.file_store import MAX_FILE_BYTES
from services.records.storage.folders import Folder
from services.records.stored_scores import stored_score, stored_scores
from shared.errors import InvalidArgument, ResourceExhausted
from shared.formats.decoding import SimulationResults
from shared.formats.simulations import (
    ActivationScale,
    AttentionSimulation,
    AttentionSimulationResults,
    ScoredAttentionExplanation,
    ScoredAttentionSimulation,
    ScoredExplanation,
    ScoredSequenceSimulation,
    ScoredSimulation,
    SequenceSimulation,
    finite_or_none,
)

# What a number takes in a file at least: 0.0 and a comma.
_SHORTEST_NUMBER = 4
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


def stored_explanation(
    request: v1.PutExplanationRequest, by_token_pair: bool
) -> ScoredExplanation | ScoredAttentionExplanation:
    """What is stored of a request; InvalidArgument names the field that makes it impossible.

    Predictions for token pairs are of a component that is `by_token_pair`.
    """
    fields = ("scored_simulation", "scored_attention_simulation")
    given = [field for field in fields if request.HasField(field)]
    if len(given) != 1:
        raise InvalidArgument(
            f"Exactly one of {' and '.join(fields)} is needed, not {len(given)}.", field=fields[0]
        )
    (field,) = given
    if field == "scored_simulation":
        return ScoredExplanation(
            request.explanation, stored_simulation(request.scored_simulation, field)
        )
    if not by_token_pair:
        raise InvalidArgument(
            f"{field} is for components by token pair; this one is by token.", field=field
        )
    return ScoredAttentionExplanation(
        request.explanation,
        _stored_attention_simulation(request.scored_attention_simulation, field),
    )


def stored_simulation(message: simulation.ScoredSimulation, field: str) -> ScoredSimulation:
    """What is stored of a scored simulation; InvalidArgument, under `field`, where it can't be.

    ResourceExhausted where it would be too large for a file.
    """
    _check_size(message, field)
    return ScoredSimulation(
        [
            _stored_sequence(sequence, f"{field}.sequences[{position}]")
            for position, sequence in enumerate(message.sequences)
        ],
        *stored_scores(message.scores, f"{field}.scores"),
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


def _stored_attention_simulation(
    message: v1.ScoredAttentionSimulation, field: str
) -> ScoredAttentionSimulation:
    score = None
    if message.HasField("roc_auc_score"):
        score = stored_score(message.roc_auc_score, f"{field}.roc_auc_score", 0)
    pairs: list[AttentionSimulation] = []
    size = 0
    for position, sequence in enumerate(message.attention_simulations):
        # A file repeats the sequence for each of its pairs.
        count = sequence.predictions.shape[0] if sequence.predictions.shape else 0
        size += count * (sum(map(len, sequence.tokens)) + len(sequence.tokens))
        if size > MAX_FILE_BYTES:
            raise _too_large(field, "tokens for each pair")
        pairs += _stored_pairs(sequence, f"{field}.attention_simulations[{position}]")
    return ScoredAttentionSimulation(pairs, score)


def _stored_pairs(message: v1.AttentionSimulation, field: str) -> list[AttentionSimulation]:
    tokens = list(message.tokens)
    predictions = _decoded(message.predictions, f"{field}.predictions")
    if predictions.ndim != 1:
        raise _wrong_shape(f"{field}.predictions", predictions, "[pairs]")
    count = len(predictions)
    if not (np.isnan(predictions) | ((predictions >= 0) & (predictions <= 1))).all():
        raise InvalidArgument(
            f"{field}.predictions are probabilities, from 0 to 1.", field=f"{field}.predictions"
        )
    coordinates = _whole(message.token_pair_coordinates, f"{field}.token_pair_coordinates")
    if coordinates.shape != (count, 2):
        raise _wrong_shape(f"{field}.token_pair_coordinates", coordinates, f"[{count}, 2]")
    if count and not (coordinates.min() >= 0 and coordinates.max() < len(tokens)):
        raise InvalidArgument(
            f"{field}.token_pair_coordinates are of tokens 0 to {len(tokens) - 1}.",
            field=f"{field}.token_pair_coordinates",
        )
    labels = _whole(message.token_pair_labels, f"{field}.token_pair_labels")
    if labels.shape != (count,):
        raise _wrong_shape(f"{field}.token_pair_labels", labels, f"[{count}]")
    if not np.isin(labels, (0, 1)).all():
        raise InvalidArgument(
            f"{field}.token_pair_labels are 0 or 1.", field=f"{field}.token_pair_labels"
        )
    return [
        AttentionSimulation(tokens, (attending, attended), label, prediction)
        for (attending, attended), label, prediction in zip(
            coordinates.tolist(), labels.tolist(), predictions.tolist(), strict=True
        )
    ]


def _check_size(message: simulation.ScoredSimulation, field: str) -> None:
    """A file repeats a distribution's values for each token, however few bytes they came in."""
    size = 0
    for sequence in message.sequences:
        simulated = sequence.simulation
        for tensor in (
            simulated.distribution_values,
            simulated.distribution_probabilities,
            simulated.uncalibrated_distribution_values,
        ):
            if len(tensor.shape) == 1:
                size += len(simulated.tokens) * tensor.shape[0] * _SHORTEST_NUMBER
    if size > MAX_FILE_BYTES:
        raise _too_large(field, "values of distributions for each token")


def _too_large(field: str, repeated: str) -> ResourceExhausted:
    return ResourceExhausted(
        f"{field} repeats its {repeated}; in a file they would have more than "
        f"{MAX_FILE_BYTES} bytes.",
        field=field,
        reason=FILE_TOO_LARGE,
        metadata={"limit": str(MAX_FILE_BYTES)},
    )


def _whole(tensor: common.Tensor, field: str) -> NDArray[np.int64]:
    values = _decoded(tensor, field)
    if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise InvalidArgument(f"{field} holds whole numbers only.", field=field)
    whole: NDArray[np.int64] = np.clip(values, -(2**53), 2**53).astype(np.int64)
    return whole


def _wrong_shape(field: str, array: NDArray[Any], needed: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field} has shape {list(array.shape)}; {needed} is needed.", field=field
    )


def _stored_sequence(
    message: simulation.ScoredSequenceSimulation, field: str
) -> ScoredSequenceSimulation:
    stored = _stored_sequence_simulation(message.simulation, f"{field}.simulation")
    true_activations = _per_token(
        message.true_activations, len(stored.tokens), f"{field}.true_activations"
    )
    scores = stored_scores(message.scores, f"{field}.scores")
    return ScoredSequenceSimulation(stored, true_activations, *scores)


def _stored_sequence_simulation(
    message: simulation.SequenceSimulation, field: str
) -> SequenceSimulation:
    tokens = list(message.tokens)
    scale = ACTIVATION_SCALES.name(message.activation_scale)
    if not scale:
        raise InvalidArgument(
            f"{field}.activation_scale is not set.", field=f"{field}.activation_scale"
        )
    probabilities = _rows(
        message.distribution_probabilities, len(tokens), f"{field}.distribution_probabilities"
    )
    before = None
    if message.HasField("uncalibrated_expected_activations"):
        before = SequenceSimulation(
            tokens=tokens,
            expected_activations=_per_token(
                message.uncalibrated_expected_activations,
                len(tokens),
                f"{field}.uncalibrated_expected_activations",
            ),
            activation_scale=ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS,
            distribution_values=_rows(
                message.uncalibrated_distribution_values,
                len(tokens),
                f"{field}.uncalibrated_distribution_values",
            ),
            distribution_probabilities=probabilities,
        )
    return SequenceSimulation(
        tokens=tokens,
        expected_activations=_per_token(
            message.expected_activations, len(tokens), f"{field}.expected_activations"
        ),
        activation_scale=ActivationScale(scale),
        distribution_values=_rows(
            message.distribution_values, len(tokens), f"{field}.distribution_values"
        ),
        distribution_probabilities=probabilities,
        uncalibrated_simulation=before,
    )


def _per_token(tensor: common.Tensor, num_tokens: int, field: str) -> list[float]:
    array = _decoded(tensor, field)
    if array.shape != (num_tokens,):
        raise InvalidArgument(
            f"{field} has shape {list(array.shape)}; its {num_tokens} tokens need [{num_tokens}].",
            field=field,
        )
    values: list[float] = array.tolist()
    return values


def _rows(tensor: common.Tensor, num_tokens: int, field: str) -> list[list[float]]:
    """A list a token; all of them empty where there is no distribution, as in [0, values]."""
    if not tensor.shape:
        return [[] for _ in range(num_tokens)]
    array = _decoded(tensor, field)
    if array.ndim == 1:
        # One list for all: what is small in a request must not be large in memory.
        values: list[float] = array[~np.isnan(array)].tolist()
        return [values] * num_tokens
    if array.ndim != 2 or array.shape[0] != num_tokens:
        raise InvalidArgument(
            f"{field} has shape {list(array.shape)}; its {num_tokens} tokens need "
            f"[{num_tokens}, values].",
            field=field,
        )
    return [row[~np.isnan(row)].tolist() for row in array]


def _decoded(tensor: common.Tensor, field: str) -> NDArray[Any]:
    try:
        return to_array(tensor).astype(np.float64)
    except ValueError as error:
        raise InvalidArgument(f"{field}: {error}.", field=field) from error


def _array(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)
