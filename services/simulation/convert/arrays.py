"""Tensors and columns of sequences as arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neuropil.common import v1 as common
from neuropil.tensors import to_array
from services.simulation.errors import InvalidInput
from services.simulation.scoring.labeled_sequences import LabeledSequences, Tokens, checked_ends
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs


def array_of(tensor: common.Tensor, field: str) -> NDArray[np.float64]:
    """A tensor as float64, of any shape; InvalidInput, naming `field`, where it can't be read."""
    try:
        return to_array(tensor).astype(np.float64)
    except ValueError as error:
        raise InvalidInput(f"{field}: {error}", field=field) from error


def vector_of(tensor: common.Tensor, field: str) -> NDArray[np.float64]:
    """A tensor of rank 1 as float64; InvalidInput, naming `field`, where it isn't one."""
    array = array_of(tensor, field)
    if array.ndim != 1:
        raise InvalidInput(
            f"{field} has shape {list(array.shape)}; one number a token is needed", field=field
        )
    return array


def tokens_of(message: common.TokenSequences, field: str) -> tuple[Tokens, ...]:
    """The tokens of each sequence; InvalidInput where lengths and tokens don't agree."""
    tokens = message.tokens
    ends = checked_ends(message.sequence_lengths, len(tokens), field)
    starts = [0, *ends[:-1]]
    return tuple(tuple(tokens[start:end]) for start, end in zip(starts, ends, strict=False))


def labeled_sequences(message: common.TokenSequences, field: str) -> LabeledSequences:
    """Sequences with true activations; InvalidInput where the columns don't agree."""
    if not message.tokens and not message.HasField("activations"):
        return LabeledSequences(
            tokens_of(message, field), tuple(np.zeros(0) for _ in message.sequence_lengths)
        )
    if not message.HasField("activations"):
        raise InvalidInput(
            f"{field}.activations is missing; one number a token is needed",
            field=f"{field}.activations",
        )
    return LabeledSequences.from_columns(
        message.tokens,
        message.sequence_lengths,
        vector_of(message.activations, f"{field}.activations"),
        field,
    )


def labeled_token_pairs(message: common.TokenPairSequences, field: str) -> LabeledTokenPairs:
    """Sequences with true activations of token pairs; InvalidInput where columns don't agree."""
    has_values = message.HasField("activations")
    return LabeledTokenPairs.from_columns(
        message.tokens,
        message.sequence_lengths,
        message.attended_to_caps,
        vector_of(message.activations, f"{field}.activations") if has_values else np.zeros(0),
        field,
    )
