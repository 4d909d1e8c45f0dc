"""The gRPC face of derived scalars: it translates, and the data plane does the work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from neuropil.channel import DEFAULT_MESSAGE_BYTES
from neuropil.scalars import v1 as scalars
from services.scalars import convert
from services.scalars.catalogue import CATALOGUE
from services.scalars.data_plane import DataPlane
from services.scalars.unread import MAX_UNREAD_BYTES, UnreadAnswers

SERVICE = scalars.DESCRIPTOR.services_by_name["DerivedScalars"]

Answer = TypeVar("Answer", bound=Message)


class DerivedScalarsService:
    """Serves `neuropil.scalars.v1.DerivedScalars`."""

    def __init__(
        self,
        data_plane: DataPlane,
        max_message_bytes: int = DEFAULT_MESSAGE_BYTES,
        max_unread_bytes: int = MAX_UNREAD_BYTES,
    ) -> None:
        self._data_plane = data_plane
        self._max_message_bytes = max_message_bytes
        self._unread = UnreadAnswers(max_unread_bytes)
        # Made once: a busy server should answer it at once.
        self._scalar_types = scalars.ListScalarTypesResponse(
            scalar_types=[
                convert.scalar_type(each, data_plane.subject.autoencoders) for each in CATALOGUE
            ]
        )

    async def GetModelInfo(
        self, request: scalars.GetModelInfoRequest, context: Any
    ) -> scalars.GetModelInfoResponse:
        """The subject model and its autoencoders."""
        return convert.model_info(self._data_plane.subject)

    async def ListScalarTypes(
        self, request: scalars.ListScalarTypesRequest, context: Any
    ) -> scalars.ListScalarTypesResponse:
        """The catalogue."""
        return self._scalar_types

    async def Tokenize(
        self, request: scalars.TokenizeRequest, context: Any
    ) -> scalars.TokenizeResponse:
        """Encodes texts."""
        return await asyncio.to_thread(
            convert.tokenized_texts,
            request.texts,
            self._data_plane.subject.tokenizer,
            self._max_message_bytes,
        )

    async def Derive(
        self, request: scalars.DeriveRequest, context: Any
    ) -> AsyncIterator[scalars.DeriveResponse]:
        """Streams whole tensors, or slices of them."""
        selections = [convert.selection(each) for each in request.selections]
        result, derived = await self._data_plane.derive(
            convert.inference_spec(request.inference), selections
        )
        for position, by_layer in enumerate(derived):
            for array in by_layer.values():
                convert.check_row(array.shape, f"selections[{position}].ranges")
        n_bytes = sum(array.nbytes for by_layer in derived for array in by_layer.values())
        with self._unread.held(n_bytes):
            yield scalars.DeriveResponse(inference=convert.inference_result(result))
            for position, by_layer in enumerate(derived):
                for layer, array in by_layer.items():
                    for frame in convert.frames(position, layer, array):
                        yield frame

    async def DeriveComponent(
        self, request: scalars.DeriveComponentRequest, context: Any
    ) -> scalars.DeriveComponentResponse:
        """One component at every token."""
        component = convert.component_spec(
            request.spec.component, request.spec.pass_type, request.spec.top_token_count
        )
        result, derived = await self._data_plane.derive_component(
            convert.inference_spec(request.inference), component
        )

        def answer() -> scalars.DeriveComponentResponse:
            return scalars.DeriveComponentResponse(
                inference=convert.inference_result(result),
                scalars=convert.component_scalars(derived),
            )

        return await self._written(answer)

    async def DeriveComponentByTokenPair(
        self, request: scalars.DeriveComponentByTokenPairRequest, context: Any
    ) -> scalars.DeriveComponentByTokenPairResponse:
        """One component at every token pair."""
        result, derived = await self._data_plane.derive_component_by_token_pair(
            convert.inference_spec(request.inference),
            convert.component_by_token_pair_spec(request.spec),
        )

        def answer() -> scalars.DeriveComponentByTokenPairResponse:
            return scalars.DeriveComponentByTokenPairResponse(
                inference=convert.inference_result(result),
                scalars=convert.token_pair_sequences(result.token_strings, derived.scalars),
            )

        return await self._written(answer)

    async def ListTopNodes(
        self, request: scalars.ListTopNodesRequest, context: Any
    ) -> scalars.ListTopNodesResponse:
        """The nodes with the largest and the smallest scalars."""
        spec = convert.top_nodes_spec(request.spec)
        result, found = await self._data_plane.list_top_nodes(
            convert.inference_spec(request.inference), spec
        )
        vocabulary = self._data_plane.subject.tokenizer.strings

        def answer() -> scalars.ListTopNodesResponse:
            return scalars.ListTopNodesResponse(
                inference=convert.inference_result(result),
                top_nodes=convert.top_nodes(found, vocabulary),
            )

        return await self._written(answer)

    async def BatchDerive(
        self, request: scalars.BatchDeriveRequest, context: Any
    ) -> AsyncIterator[scalars.BatchDeriveResponse]:
        """Several inferences, with several requests on each."""
        answers = await self._data_plane.derive_batch(
            convert.batch_inferences(request, self._max_message_bytes)
        )
        vocabulary = self._data_plane.subject.tokenizer.strings
        with self._unread.held(sum(each.tensor_bytes for each in answers)):
            for position, answer in enumerate(answers):
                yield await asyncio.to_thread(
                    convert.batch_response, position, answer, vocabulary, self._max_message_bytes
                )

    async def _written(self, answer: Callable[[], Answer]) -> Answer:
        """The answer to a `spec`, if a message can hold it.

        Many nodes or token pairs take a while to write down, in which others should be answered.
        """
        return await asyncio.to_thread(
            lambda: convert.checked_size(answer(), self._max_message_bytes, "spec")
        )
