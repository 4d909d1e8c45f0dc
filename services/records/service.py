"""The gRPC face of the record reader: it translates, and nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from neuropil.records import v1
from services.records.components import Component
from services.records.convert import (
    batch_message,
    component_of,
    dataset_message,
    scalar_type_of,
    view_of,
)
from services.records.reading import RecordReader
from services.records.search.messages import hits_message, query_of
from services.records.search.search import ExplanationSearch
from services.records.served_requests import ServedRequests
from services.records.simulation_messages import serialized_results
from services.records.storage import listing
from services.records.storage.folders import Folder
from services.records.storage.writing import ExplanationWriter
from services.records.stored_explanations import stored_explanation
from shared.rpc.interceptors.kept_replies import KeptReply
from shared.rpc.interceptors.wrapping import Context

_COMPONENTS_AT_ONCE = 500


class RecordReaderService:
    """Serves the contract's RecordReader; records and explanations go out as cached bytes."""

    def __init__(
        self, reader: RecordReader, writer: ExplanationWriter, search: ExplanationSearch
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._search = search
        self._token_records = ServedRequests(reader)
        self._token_pair_records = ServedRequests(reader)

    @property
    def kept_replies(self) -> dict[str, KeptReply]:
        """Methods whose requests may be answered from memory by their bytes."""
        return {
            "GetTokenRecord": self._token_records.reply,
            "GetTokenPairRecord": self._token_pair_records.reply,
        }

    async def ListDatasets(
        self, request: v1.ListDatasetsRequest, context: Context
    ) -> v1.ListDatasetsResponse:
        """The configured datasets."""
        datasets = self._reader.registry.datasets
        return v1.ListDatasetsResponse(datasets=[dataset_message(each) for each in datasets])

    async def ListLayers(
        self, request: v1.ListLayersRequest, context: Context
    ) -> v1.ListLayersResponse:
        """A page of a dataset's layers."""
        layers = await listing.layers(self._reader.blobs, self._folder(request.dataset))
        page = listing.page(layers, request.page_size, request.page_token)
        return v1.ListLayersResponse(
            layer_indices=page.indices, next_page_token=page.next_page_token
        )

    async def ListComponents(
        self, request: v1.ListComponentsRequest, context: Context
    ) -> v1.ListComponentsResponse:
        """A page of a layer's components."""
        components = await listing.components(
            self._reader.blobs, self._folder(request.dataset), request.layer_index, ".json"
        )
        page = listing.page(components, request.page_size, request.page_token)
        return v1.ListComponentsResponse(
            component_indices=page.indices, next_page_token=page.next_page_token
        )

    async def GetTokenRecord(self, request: v1.GetTokenRecordRequest, context: Context) -> bytes:
        """A record by token."""
        component, view = component_of(request.component), view_of(request.view)
        reply = await self._reader.token_record(component, request.datasets, view)
        self._token_records.served(request, component, view)
        return reply

    async def GetTokenPairRecord(
        self, request: v1.GetTokenPairRecordRequest, context: Context
    ) -> bytes:
        """A record by token pair."""
        component, view = component_of(request.component), view_of(request.view)
        reply = await self._reader.token_pair_record(component, request.datasets, view)
        self._token_pair_records.served(request, component, view)
        return reply

    async def BatchGetRecords(
        self, request: v1.BatchGetRecordsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """Many records, each in its component's place; several a message where it is allowed."""
        components: list[Component] = []
        for position, component in enumerate(request.components):
            if position % _COMPONENTS_AT_ONCE == _COMPONENTS_AT_ONCE - 1:
                # Others are answered meanwhile.
                await asyncio.sleep(0)
            components.append(component_of(component, f"components[{position}]"))
        batch = self._reader.batch(
            components,
            request.datasets,
            view_of(request.view),
            max(1, request.max_records_per_message),
        )
        async with aclosing(batch) as groups:
            async for items in groups:
                yield batch_message(items)

    async def ListExplanations(
        self, request: v1.ListExplanationsRequest, context: Context
    ) -> bytes:
        """Explanations of several datasets, and the datasets that failed."""
        by_dataset = request.WhichOneof("source") == "neuron_dataset"
        return await self._reader.explanations(
            component_of(request.component),
            explanation_datasets=list(request.explanation_datasets.paths),
            neuron_dataset=request.neuron_dataset if by_dataset else None,
        )

    async def GetScoredSimulations(
        self, request: v1.GetScoredSimulationsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """All that the explanations' scores were computed from."""
        component = component_of(request.component)
        messages = await self._reader.simulation_results(
            component, request.explanation_dataset, serialized_results
        )
        messages.reverse()
        while messages:
            # What was sent is not kept until the last is.
            yield messages.pop()

    async def PutExplanation(
        self, request: v1.PutExplanationRequest, context: Context
    ) -> v1.PutExplanationResponse:
        """Store an explanation; from then on it is listed."""
        component = component_of(request.component)
        folder = self._reader.registry.explanation_folder(request.explanation_dataset)
        scored = await asyncio.to_thread(stored_explanation, request, component.by_token_pair)
        replaced = await self._writer.put(component, folder, scored)
        return v1.PutExplanationResponse(replaced=replaced)

    async def SearchExplanations(
        self, request: v1.SearchExplanationsRequest, context: Context
    ) -> v1.SearchExplanationsResponse:
        """Explanations that match, best first."""
        name = "dataset.derived_scalar_type"
        scalar_type = scalar_type_of(request.dataset.derived_scalar_type, name)
        hits = await self._search.search(request.dataset.dataset, scalar_type, query_of(request))
        return hits_message(hits)

    def _folder(self, dataset: v1.DatasetId) -> Folder:
        scalar_type = scalar_type_of(dataset.derived_scalar_type, "dataset.derived_scalar_type")
        return self._reader.registry.record_folder(dataset.dataset, scalar_type, "dataset.dataset")
