"""Records and explanations, as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropil.common import v1 as common
from neuropil.errors import PartialAnswerWarning, translated
from neuropil.names import component_id
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


@dataclass(frozen=True)
class TokenRecord:
    """What was recorded of a component by token."""

    dataset: str
    max_activation: float
    top: list[TokenSequence]
    """The most activating sequences, strongest first."""
    random: list[TokenSequence]
    quantiles: list[list[TokenSequence]]
    quantile_boundaries: list[float]
    moments: dict[str, float]
    """mean, variance, skewness and kurtosis, where they are known."""


@dataclass(frozen=True)
class TokenPairRecord:
    """What was recorded of a component by token pair."""

    dataset: str
    max_activation: float
    top: list[TokenPairSequence]
    random: list[TokenPairSequence]


@dataclass(frozen=True)
class Explanation:
    """What makes a component active."""

    text: str
    score: float | None
    """The preferred score; None where it is undefined."""
    dataset_name: str


class RecordsClient:
    """The record reader."""

    def __init__(self, stub: v1.RecordReaderStub, timeout: float) -> None:
        self.stub = stub
        """The generated stub, for what this class doesn't cover."""
        self._timeout = timeout

    def datasets(self) -> list[v1.Dataset]:
        """The datasets of the deployment."""
        with translated():
            answer = self.stub.ListDatasets(v1.ListDatasetsRequest(), timeout=self._timeout)
        return list(answer.datasets)

    def components(self, dataset: str, derived_scalar_type: str, layer_index: int) -> Iterator[int]:
        """Indices of the components that a layer has records of, ascending, page by page."""
        component = component_id(derived_scalar_type, layer_index, 0)
        request = v1.ListComponentsRequest(
            dataset=v1.DatasetId(
                dataset=dataset, derived_scalar_type=component.derived_scalar_type
            ),
            layer_index=layer_index,
        )
        while True:
            with translated():
                page = self.stub.ListComponents(request, timeout=self._timeout)
            yield from page.component_indices
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def token_record(
        self,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        datasets: Sequence[str],
        *,
        quantiles: bool = False,
        moments: bool = False,
    ) -> TokenRecord:
        """The record of a component by token, from the first dataset that has it.

        Raises:
            NeuropilError: NOT_FOUND after all datasets were tried, DATA_LOSS for a corrupt file.
        """
        request = v1.GetTokenRecordRequest(
            component=component_id(derived_scalar_type, layer_index, component_index),
            datasets=datasets,
            view=v1.RecordView(include_quantile_samples=quantiles, include_moments=moments),
        )
        with translated():
            answer = self.stub.GetTokenRecord(request, timeout=self._timeout)
        return TokenRecord(
            dataset=answer.dataset,
            max_activation=answer.max_activation,
            top=split_sequences(answer.top_sequences),
            random=split_sequences(answer.random_sequences),
            quantiles=[split_sequences(each) for each in answer.quantile_sequences],
            quantile_boundaries=list(answer.quantile_boundaries),
            moments={field.name: value for field, value in answer.moments.ListFields()},
        )

    def token_pair_record(
        self,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        datasets: Sequence[str],
    ) -> TokenPairRecord:
        """The record of a component by token pair, such as an attention head.

        Raises:
            NeuropilError: as in `token_record`.
        """
        request = v1.GetTokenPairRecordRequest(
            component=component_id(derived_scalar_type, layer_index, component_index),
            datasets=datasets,
        )
        with translated():
            answer = self.stub.GetTokenPairRecord(request, timeout=self._timeout)
        return TokenPairRecord(
            dataset=answer.dataset,
            max_activation=answer.max_activation,
            top=split_pair_sequences(answer.top_sequences),
            random=split_pair_sequences(answer.random_sequences),
        )

    def explanations(
        self,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        *,
        dataset: str,
    ) -> list[Explanation]:
        """The explanations of a component in all explanation datasets of a dataset of records.

        Of an explanation dataset that can't be read, while another can, a `PartialAnswerWarning`
        tells.

        Raises:
            NeuropilError: DATA_LOSS where every one of them failed.
        """
        request = v1.ListExplanationsRequest(
            component=component_id(derived_scalar_type, layer_index, component_index),
            neuron_dataset=dataset,
        )
        with translated():
            answer = self.stub.ListExplanations(request, timeout=self._timeout)
        for failure in answer.failures:
            text = f"explanations of {failure.dataset} are missing: {failure.message}"
            warnings.warn(text, PartialAnswerWarning, stacklevel=2)
        return [
            Explanation(
                text=each.text,
                score=each.score if each.HasField("score") else None,
                dataset_name=each.dataset_name,
            )
            for each in answer.explanations
        ]


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
