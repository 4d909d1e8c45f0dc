"""What the record reader's messages hold, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from neuropil.common import v1 as common
from neuropil.errors import NeuropilError
from neuropil.records import v1
from neuropil.tensors import to_array

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TokenSequence:
    """A sequence with one activation a token."""

    tokens: list[str]
    activations: Floats
    """[tokens], in the model's units."""
    normalized_activations: Floats
    """[tokens], 0 to 1, on the record's scale."""


@dataclass(frozen=True)
class TokenPairSequence:
    """A sequence with one activation a token pair."""

    tokens: list[str]
    attended_to_cap: int
    """Row i holds min(i + 1, cap) pairs."""
    activations: Floats
    """[pairs], rows of the lower triangle one after another, in the model's units."""

    def matrix(self) -> Floats:
        """[tokens, tokens] by attending and attended-to token; NaN where there is no pair."""
        n = len(self.tokens)
        rows, columns = np.tril_indices(n)
        held = columns < self.attended_to_cap
        square = np.full((n, n), np.nan, dtype=self.activations.dtype)
        square[rows[held], columns[held]] = self.activations
        return square


_Sequence = TypeVar("_Sequence", TokenSequence, TokenPairSequence)


@dataclass(frozen=True)
class _Record(Generic[_Sequence]):
    dataset: str
    max_activation: float
    top: list[_Sequence]
    """The most activating sequences, strongest first."""
    random: list[_Sequence]
    quantiles: list[list[_Sequence]]
    quantile_boundaries: list[float]
    moments: dict[str, float]
    """mean, variance, skewness and kurtosis, where they are known."""


class TokenRecord(_Record[TokenSequence]):
    """What was recorded of a component by token."""


class TokenPairRecord(_Record[TokenPairSequence]):
    """What was recorded of a component by token pair."""


@dataclass(frozen=True)
class Explanation:
    """What makes a component active."""

    text: str
    score: float | None
    """The preferred score; None where it is undefined."""
    dataset_name: str
    """Last part of the path of its explanation dataset."""
    dataset: str
    """That path; `scored_simulations` and `put_explanation` take it."""


@dataclass(frozen=True)
class SearchHit:
    """An explanation that matches a text."""

    layer_index: int
    component_index: int
    explanation: Explanation
    relevance: float
    """Higher is better, comparable within one search."""


def explanation_of(explanation: v1.Explanation) -> Explanation:
    """An explanation of a message."""
    return Explanation(
        text=explanation.text,
        score=explanation.score if explanation.HasField("score") else None,
        dataset_name=explanation.dataset_name,
        dataset=explanation.dataset,
    )


def search_hit_of(hit: v1.SearchHit) -> SearchHit:
    """A hit of a message."""
    return SearchHit(
        layer_index=hit.component.layer_index,
        component_index=hit.component.component_index,
        explanation=explanation_of(hit.explanation),
        relevance=hit.relevance,
    )


def token_record_of(answer: v1.GetTokenRecordResponse) -> TokenRecord:
    """A record of a message; its arrays are views of the message's."""
    return TokenRecord(
        dataset=answer.dataset,
        max_activation=answer.max_activation,
        top=split_sequences(answer.top_sequences),
        random=split_sequences(answer.random_sequences),
        quantiles=[split_sequences(each) for each in answer.quantile_sequences],
        quantile_boundaries=list(answer.quantile_boundaries),
        moments={field.name: value for field, value in answer.moments.ListFields()},
    )


def token_pair_record_of(answer: v1.GetTokenPairRecordResponse) -> TokenPairRecord:
    """A record of a message; its arrays are views of the message's."""
    return TokenPairRecord(
        dataset=answer.dataset,
        max_activation=answer.max_activation,
        top=split_pair_sequences(answer.top_sequences),
        random=split_pair_sequences(answer.random_sequences),
        quantiles=[split_pair_sequences(each) for each in answer.quantile_sequences],
        quantile_boundaries=list(answer.quantile_boundaries),
        moments={field.name: value for field, value in answer.moments.ListFields()},
    )


def batch_outcome_of(
    item: v1.BatchGetRecordsResponse,
) -> TokenRecord | TokenPairRecord | NeuropilError:
    """The record of one component of a batch, or why there is none."""
    match item.WhichOneof("outcome"):
        case "token_record":
            return token_record_of(item.token_record)
        case "token_pair_record":
            return token_pair_record_of(item.token_pair_record)
        case _:
            failure = item.failure
            return NeuropilError(
                failure.code,
                failure.message,
                reason=failure.reason,
                metadata=dict(failure.metadata),
            )


def split_sequences(columns: common.TokenSequences) -> list[TokenSequence]:
    """The sequences of a message, one by one; their arrays are views of the message's."""
    if not columns.sequence_lengths:
        return []
    ends = np.cumsum(columns.sequence_lengths, dtype=np.int64)[:-1]
    activations = np.split(to_array(columns.activations), ends)
    normalized = np.split(to_array(columns.normalized_activations), ends)
    return [
        TokenSequence(tokens, values, scaled)
        for tokens, values, scaled in zip(
            _split_tokens(columns.tokens, columns.sequence_lengths),
            activations,
            normalized,
            strict=False,
        )
    ]


def split_pair_sequences(columns: common.TokenPairSequences) -> list[TokenPairSequence]:
    """The sequences of a message, one by one; their arrays are views of the message's."""
    if not columns.sequence_lengths:
        return []
    lengths = np.asarray(columns.sequence_lengths, dtype=np.int64)
    caps = np.asarray(columns.attended_to_caps, dtype=np.int64)
    over = lengths - caps
    pairs = lengths * (lengths + 1) // 2 - over * (over + 1) // 2
    activations = np.split(to_array(columns.activations), np.cumsum(pairs)[:-1])
    return [
        TokenPairSequence(tokens, int(cap), values)
        for tokens, cap, values in zip(
            _split_tokens(columns.tokens, columns.sequence_lengths),
            caps,
            activations,
            strict=False,
        )
    ]


def _split_tokens(tokens: Sequence[str], lengths: Sequence[int]) -> Iterator[list[str]]:
    start = 0
    for length in lengths:
        yield list(tokens[start : start + length])
        start += length
