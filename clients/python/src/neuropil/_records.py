"""Records and explanations, as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, PartialAnswerWarning, translated
from neuropil.names import component_id
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
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
    quantiles: list[list[TokenPairSequence]]
    quantile_boundaries: list[float]
    moments: dict[str, float]
    """mean, variance, skewness and kurtosis, where they are known."""


@dataclass(frozen=True)
class Explanation:
    """What makes a component active."""

    text: str
    score: float | None
    """The preferred score; None where it is undefined."""
    dataset_name: str


@dataclass(frozen=True)
class SearchHit:
    """An explanation that matches a text."""

    layer_index: int
    component_index: int
    explanation: Explanation
    relevance: float
    """Higher is better, comparable within one search."""


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

    def layers(self, dataset: str, derived_scalar_type: str) -> Iterator[int]:
        """Indices of the layers that a dataset has records of, ascending, page by page."""
        component = component_id(derived_scalar_type, 0, 0)
        request = v1.ListLayersRequest(
            dataset=v1.DatasetId(dataset=dataset, derived_scalar_type=component.derived_scalar_type)
        )
        while True:
            with translated():
                page = self.stub.ListLayers(request, timeout=self._timeout)
            yield from page.layer_indices
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
        return _token_record(answer)

    def token_pair_record(
        self,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        datasets: Sequence[str],
        *,
        quantiles: bool = False,
        moments: bool = False,
    ) -> TokenPairRecord:
        """The record of a component by token pair, such as an attention head.

        Raises:
            NeuropilError: as in `token_record`.
        """
        request = v1.GetTokenPairRecordRequest(
            component=component_id(derived_scalar_type, layer_index, component_index),
            datasets=datasets,
            view=v1.RecordView(include_quantile_samples=quantiles, include_moments=moments),
        )
        with translated():
            answer = self.stub.GetTokenPairRecord(request, timeout=self._timeout)
        return _token_pair_record(answer)

    def batch(
        self,
        components: Sequence[tuple[str, int, int]],
        datasets: Sequence[str],
        *,
        quantiles: bool = False,
        moments: bool = False,
    ) -> Iterator[TokenRecord | TokenPairRecord | NeuropilError]:
        """The records of up to 10,000 components, in their order, each as soon as it is there.

        A component is (derived scalar type, layer, index). Where one has no record, its place in
        the stream has the `NeuropilError` that says why; it is not raised. The client's timeout is
        for the whole stream.

        Raises:
            NeuropilError: where the stream itself fails.
        """
        request = v1.BatchGetRecordsRequest(
            components=[component_id(*component) for component in components],
            datasets=datasets,
            view=v1.RecordView(include_quantile_samples=quantiles, include_moments=moments),
        )
        with translated():
            for item in self.stub.BatchGetRecords(request, timeout=self._timeout):
                match item.WhichOneof("outcome"):
                    case "token_record":
                        yield _token_record(item.token_record)
                    case "token_pair_record":
                        yield _token_pair_record(item.token_pair_record)
                    case _:
                        failure = item.failure
                        yield NeuropilError(failure.code, failure.message, reason=failure.reason)

    def scored_simulations(
        self,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        *,
        explanation_dataset: str,
    ) -> Iterator[v1.GetScoredSimulationsResponse]:
        """The explanations of a component with all that their scores were computed from.

        One message an explanation; `neuropil.tensors.to_array` makes arrays of its tensors.

        Raises:
            NeuropilError: NOT_FOUND where there are none, DATA_LOSS for a corrupt file.
        """
        request = v1.GetScoredSimulationsRequest(
            component=component_id(derived_scalar_type, layer_index, component_index),
            explanation_dataset=explanation_dataset,
        )
        with translated():
            yield from self.stub.GetScoredSimulations(request, timeout=self._timeout)

    def put_explanation(
        self,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        explanation: str,
        scored_simulation: simulation.ScoredSimulation,
        *,
        explanation_dataset: str,
    ) -> bool:
        """Store an explanation with the simulation that scores it, by token.

        Returns whether one of the same text was replaced. Other explanations of the component stay.

        Raises:
            NeuropilError: INVALID_ARGUMENT for a dataset that is not configured, for example.
        """
        request = v1.PutExplanationRequest(
            component=component_id(derived_scalar_type, layer_index, component_index),
            explanation_dataset=explanation_dataset,
            explanation=explanation,
            scored_simulation=scored_simulation,
        )
        with translated():
            return self.stub.PutExplanation(request, timeout=self._timeout).replaced

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

    def search(
        self,
        query: str,
        dataset: str,
        derived_scalar_type: str,
        *,
        semantic: bool = False,
        limit: int = 50,
        layer_indices: Sequence[int] = (),
        min_score: float | None = None,
    ) -> list[SearchHit]:
        """Explanations of a dataset that match a text by words, or by meaning; best first.

        Up to `limit` of them, only of some layers and only from a preferred score on if asked. Of
        an index that is still being built a `PartialAnswerWarning` tells.

        Raises:
            NeuropilError: FAILED_PRECONDITION where the service can't search by meaning.
        """
        component = component_id(derived_scalar_type, 0, 0)
        request = v1.SearchExplanationsRequest(
            dataset=v1.DatasetId(
                dataset=dataset, derived_scalar_type=component.derived_scalar_type
            ),
            query=query,
            mode=v1.SEARCH_MODE_SEMANTIC if semantic else v1.SEARCH_MODE_TEXT,
            layer_indices=layer_indices,
            min_score=min_score,
        )
        hits: list[SearchHit] = []
        complete = True
        while len(hits) < limit:
            request.page_size = min(limit - len(hits), 1000)
            with translated():
                page = self.stub.SearchExplanations(request, timeout=self._timeout)
            hits += [_search_hit(hit) for hit in page.hits]
            complete = complete and page.index.complete
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        if not complete:
            text = f"the search index of {dataset} is still being built: hits may be missing"
            warnings.warn(text, PartialAnswerWarning, stacklevel=2)
        return hits


def _search_hit(hit: v1.SearchHit) -> SearchHit:
    explanation = hit.explanation
    return SearchHit(
        layer_index=hit.component.layer_index,
        component_index=hit.component.component_index,
        explanation=Explanation(
            text=explanation.text,
            score=explanation.score if explanation.HasField("score") else None,
            dataset_name=explanation.dataset_name,
        ),
        relevance=hit.relevance,
    )


def _token_record(answer: v1.GetTokenRecordResponse) -> TokenRecord:
    return TokenRecord(
        dataset=answer.dataset,
        max_activation=answer.max_activation,
        top=split_sequences(answer.top_sequences),
        random=split_sequences(answer.random_sequences),
        quantiles=[split_sequences(each) for each in answer.quantile_sequences],
        quantile_boundaries=list(answer.quantile_boundaries),
        moments={field.name: value for field, value in answer.moments.ListFields()},
    )


def _token_pair_record(answer: v1.GetTokenPairRecordResponse) -> TokenPairRecord:
    return TokenPairRecord(
        dataset=answer.dataset,
        max_activation=answer.max_activation,
        top=split_pair_sequences(answer.top_sequences),
        random=split_pair_sequences(answer.random_sequences),
        quantiles=[split_pair_sequences(each) for each in answer.quantile_sequences],
        quantile_boundaries=list(answer.quantile_boundaries),
        moments={field.name: value for field, value in answer.moments.ListFields()},
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
