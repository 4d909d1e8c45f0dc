"""Sequences of tokens, with or without activations, as messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from neuropil.common import v1 as common
from neuropil.tensors import to_tensor


def token_sequences(
    sequences: Sequence[Sequence[str]],
    activations: Sequence[ArrayLike] | None = None,
    *,
    names: tuple[str, str] = ("sequences", "activations"),
) -> common.TokenSequences:
    """Sequences one after another, with an activation a token where these are given.

    Raises:
        ValueError: if a text stands where a list of tokens is needed, or a sequence has not one
            activation a token; it calls them by `names`.
    """
    tokens_name, activations_name = names
    refuse_text(sequences, tokens_name)
    for position, sequence in enumerate(sequences):
        refuse_text(sequence, f"{tokens_name}[{position}]")
    message = common.TokenSequences(
        tokens=[token for sequence in sequences for token in sequence],
        sequence_lengths=[len(sequence) for sequence in sequences],
    )
    if activations is not None:
        if len(activations) != len(sequences):
            raise ValueError(
                f"{activations_name} are of {len(activations)} sequences, and {tokens_name} has "
                f"{len(sequences)}"
            )
        values = [np.asarray(each, dtype=np.float64) for each in activations]
        for position, (value, sequence) in enumerate(zip(values, sequences, strict=True)):
            if value.shape != (len(sequence),):
                raise ValueError(
                    f"{activations_name}[{position}] has shape {list(value.shape)}, and "
                    f"{tokens_name}[{position}] has {len(sequence)} tokens"
                )
        message.activations.CopyFrom(to_tensor(np.concatenate([np.zeros(0), *values])))
    return message


def refuse_text(tokens: object, name: str) -> None:
    """Raise ValueError for a text, whose letters would be taken for tokens."""
    if isinstance(tokens, str):
        raise ValueError(
            f"{name} is a text; a list of tokens is needed, as client.scalars.tokenize makes it"
        )
