"""Explanations that a request brings, as they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropil.common import v1 as common
from neuropil.names import ACTIVATION_SCALES
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_array
from services.records.storage.failures import FILE_TOO_LARGE
from services.records.storage.file_store import MAX_FILE_BYTES
from services.records.stored_scores import stored_score, stored_scores
from shared.errors import InvalidArgument, ResourceExhausted
from shared.formats.simulations import (
    ActivationScale,
    AttentionSimulation,
    ScoredAttentionExplanation,
    ScoredAttentionSimulation,
    ScoredExplanation,
    ScoredSequenceSimulation,
    ScoredSimulation,
    SequenceSimulation,
)

# What a number takes in a file at least: 0.0 and a comma.
_SHORTEST_NUMBER = 4


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
