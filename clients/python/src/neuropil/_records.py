"""Records and explanations, as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from neuropil._record_types import (
    Explanation,
    SearchHit,
    TokenPairRecord,
    TokenRecord,
    batch_outcome_of,
    explanation_of,
    search_hit_of,
    token_pair_record_of,
    token_record_of,
)
from neuropil.errors import NeuropilError, PartialAnswerWarning, translated
from neuropil.names import component_id
from neuropil.records import v1
from neuropil.simulation import v1 as simulation


class RecordsClient:
    """The record reader."""

    def __init__(
        self, stub: v1.RecordReaderStub, timeout: float, *, records_per_message: int = 1
    ) -> None:
        self.stub = stub
        """The generated stub, for what this class doesn't cover."""
        self._timeout = timeout
        self._records_per_message = records_per_message

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
        return token_record_of(answer)

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
        return token_pair_record_of(answer)

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
            max_records_per_message=self._records_per_message,
        )
        with translated():
            call = self.stub.BatchGetRecords(request, timeout=self._timeout)
            try:
                for message in call:
                    yield batch_outcome_of(message)
                    yield from map(batch_outcome_of, message.following)
            finally:
                # Who reads no further lets the service stop too.
                call.cancel()

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
            call = self.stub.GetScoredSimulations(request, timeout=self._timeout)
            try:
                yield from call
            finally:
                call.cancel()

    def put_explanation(
        self,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        explanation: str,
        scored_simulation: simulation.ScoredSimulation | v1.ScoredAttentionSimulation,
        *,
        explanation_dataset: str,
    ) -> bool:
        """Store an explanation with the simulation that scores it.

        An attention head, as any component by token pair, may have a `ScoredAttentionSimulation`.
        Returns whether one of the same text was replaced. Other explanations of the component stay.

        Raises:
            NeuropilError: INVALID_ARGUMENT for a dataset that is not configured, for example, or
                for token pairs of a component by token.
        """
        request = v1.PutExplanationRequest(
            component=component_id(derived_scalar_type, layer_index, component_index),
            explanation_dataset=explanation_dataset,
            explanation=explanation,
        )
        if isinstance(scored_simulation, v1.ScoredAttentionSimulation):
            request.scored_attention_simulation.CopyFrom(scored_simulation)
        else:
            request.scored_simulation.CopyFrom(scored_simulation)
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
        return [explanation_of(each) for each in answer.explanations]

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
            hits += [search_hit_of(hit) for hit in page.hits]
            complete = complete and page.index.complete
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        if not complete:
            text = f"the search index of {dataset} is still being built: hits may be missing"
            warnings.warn(text, PartialAnswerWarning, stacklevel=2)
        return hits
