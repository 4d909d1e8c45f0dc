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
from neuropil._simulation_results import ScoredExplanation
from neuropil.errors import NeuropilError, PartialAnswerWarning, translated
from neuropil.names import component_id, dataset_names
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.stored_scores import put_request, stored_attention


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
        datasets: str | Sequence[str],
        *,
        quantiles: bool = False,
        moments: bool = False,
    ) -> TokenRecord:
        """The record of a component by token, from the first dataset that has it.

        `datasets` are tried in order; a single one need not be in a list. One that is unknown is
        passed over where another is known.

        Raises:
            NeuropilError: NOT_FOUND after all datasets were tried, DATA_LOSS for a corrupt file.
        """
        request = v1.GetTokenRecordRequest(
            component=component_id(derived_scalar_type, layer_index, component_index),
            datasets=dataset_names(datasets),
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
        datasets: str | Sequence[str],
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
            datasets=dataset_names(datasets),
            view=v1.RecordView(include_quantile_samples=quantiles, include_moments=moments),
        )
        with translated():
            answer = self.stub.GetTokenPairRecord(request, timeout=self._timeout)
        return token_pair_record_of(answer)

    def batch(
        self,
        components: Sequence[tuple[str, int, int]],
        datasets: str | Sequence[str],
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
            datasets=dataset_names(datasets),
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
        scored_simulation: (
            ScoredExplanation
            | simulation.ScoredExplanation
            | simulation.ScoredSimulation
            | simulation.ScoredAttentionPairs
            | v1.ScoredAttentionSimulation
        ),
        *,
        explanation_dataset: str,
    ) -> bool:
        """Store an explanation with the simulation that scores it.

        The simulation is what `client.simulation.score` gave for the same explanation, by token or,
        of an attention head, by token pair; its message; or a message as `scored_simulations` gives
        it. `explanation_dataset` is a path, as `Explanation.dataset` or
        `explanation_dataset_paths` of `datasets()` have it.

        Returns whether one of the same text was replaced. Other explanations of the component stay.

        Raises:
            TypeError: if the simulation is none of these.
            ValueError: if it is the score of another explanation, or one by detection or fuzzing,
                which explanation files have no place for.
            NeuropilError: INVALID_ARGUMENT for a path that may not be read, for example, for a
                score out of its range, or for token pairs of a component by token.
        """
        component = component_id(derived_scalar_type, layer_index, component_index)
        if isinstance(scored_simulation, ScoredExplanation):
            scored_simulation = scored_simulation.message
        if isinstance(scored_simulation, simulation.ScoredExplanation):
            if scored_simulation.explanation != explanation:
                raise ValueError(
                    f"the explanation is {explanation!r}, but {scored_simulation.explanation!r} "
                    "was scored"
                )
            request = put_request(component, explanation_dataset, scored_simulation)
        else:
            request = v1.PutExplanationRequest(
                component=component,
                explanation_dataset=explanation_dataset,
                explanation=explanation,
            )
            if isinstance(scored_simulation, v1.ScoredAttentionSimulation):
                request.scored_attention_simulation.CopyFrom(scored_simulation)
            elif isinstance(scored_simulation, simulation.ScoredAttentionPairs):
                request.scored_attention_simulation.CopyFrom(stored_attention(scored_simulation))
            elif isinstance(scored_simulation, simulation.ScoredSimulation):
                request.scored_simulation.CopyFrom(scored_simulation)
            else:
                raise TypeError(
                    "scored_simulation is what simulation.score gives, a ScoredSimulation or "
                    "ScoredAttentionPairs of neuropil.simulation.v1, or a "
                    "ScoredAttentionSimulation of neuropil.records.v1, not a "
                    f"{type(scored_simulation).__name__}"
                )
        with translated():
            return self.stub.PutExplanation(request, timeout=self._timeout).replaced

    def explanations(
        self,
        derived_scalar_type: str,
        layer_index: int | None,
        component_index: int,
        *,
        dataset: str | None = None,
        explanation_datasets: str | Sequence[str] = (),
    ) -> list[Explanation]:
        """The explanations of a component, in the order of the explanation datasets.

        Either in all explanation datasets of a `dataset` of records, or in `explanation_datasets`,
        which are called by their paths: exactly one of the two is given. Of an explanation dataset
        that can't be read, while another can, a `PartialAnswerWarning` tells.

        Raises:
            TypeError: if both or neither are given.
            NeuropilError: DATA_LOSS where every one of them failed.
        """
        if (dataset is None) == (not explanation_datasets):
            raise TypeError("either dataset or explanation_datasets is needed, and not both")
        request = v1.ListExplanationsRequest(
            component=component_id(derived_scalar_type, layer_index, component_index),
            neuron_dataset=dataset,
        )
        if explanation_datasets:
            request.explanation_datasets.paths.extend(dataset_names(explanation_datasets))
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
