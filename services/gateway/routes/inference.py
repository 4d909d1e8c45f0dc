"""Routes that run the model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import APIRouter
from starlette.responses import Response

from neuropil.common import v1 as common
from neuropil.errors import NeuropilError as ClientError
from neuropil.records import v1 as records
from neuropil.scalars import v1
from services.gateway.backends import Backends, calling
from services.gateway.derived_encoding import (
    derived_attention_scalars_pieces,
    derived_scalars_pieces,
    top_nodes_pieces,
)
from services.gateway.errors import from_service_error, internal_error
from services.gateway.gateway import TheGateway, json_answer
from services.gateway.inference import (
    component_by_token_pair_spec,
    component_spec,
    inference_message,
    top_nodes_spec,
)
from services.gateway.requests import (
    DerivedAttentionScalarsRequest,
    DerivedScalarsRequest,
    MultipleTopKDerivedScalarsRequest,
    NodeIdAndDatasets,
)
from services.gateway.responses import (
    PROBLEMS,
    DerivedAttentionScalarsResponse,
    DerivedScalarsResponse,
    ModelInfoResponse,
    MultipleTopKDerivedScalarsResponse,
)
from services.gateway.routes.read import component_message

_Value = TypeVar("_Value")
_Other = TypeVar("_Other")

router = APIRouter(tags=["inference"], responses=PROBLEMS)


@router.post("/derived_scalars", response_model=DerivedScalarsResponse)
async def derived_scalars(body: DerivedScalarsRequest, gateway: TheGateway) -> Response:
    """Scalars of one component at every token of a prompt."""
    spec = body.derived_scalars_request_spec
    prefix = "derivedScalarsRequestSpec"
    request = v1.DeriveComponentRequest(
        inference=inference_message(body.inference_request_spec), spec=component_spec(spec)
    )
    backends = gateway.backends
    stub = backends.scalars

    async def derive() -> v1.DeriveComponentResponse:
        async with calling("scalars", prefix):
            return await stub.DeriveComponent(request)

    record = spec.normalize_activations_using_neuron_record
    maximum = None
    if record is None:
        derived = await derive()
    else:
        derived, maximum = await _both(
            derive(),
            _record_maximum(backends, record, f"{prefix}.normalizeActivationsUsingNeuronRecord"),
        )
    return await gateway.answer(derived_scalars_pieces(derived, maximum))


@router.post("/derived_attention_scalars", response_model=DerivedAttentionScalarsResponse)
async def derived_attention_scalars(
    body: DerivedAttentionScalarsRequest, gateway: TheGateway
) -> Response:
    """Scalars of one component at every token pair of a prompt."""
    spec = body.derived_attention_scalars_request_spec
    prefix = "derivedAttentionScalarsRequestSpec"
    request = v1.DeriveComponentByTokenPairRequest(
        inference=inference_message(body.inference_request_spec),
        spec=component_by_token_pair_spec(spec),
    )
    backends = gateway.backends
    stub = backends.scalars

    async def derive() -> v1.DeriveComponentByTokenPairResponse:
        async with calling("scalars", prefix):
            return await stub.DeriveComponentByTokenPair(request)

    wanted = spec.normalize_activations_using_neuron_record
    if wanted is None:
        return await gateway.answer(derived_attention_scalars_pieces(await derive(), None))
    derived, record = await _both(
        derive(),
        _token_pair_record(backends, wanted, f"{prefix}.normalizeActivationsUsingNeuronRecord"),
    )
    return await gateway.answer(derived_attention_scalars_pieces(derived, record.top_sequences))


@router.post("/multiple_top_k_derived_scalars", response_model=MultipleTopKDerivedScalarsResponse)
async def multiple_top_k_derived_scalars(
    body: MultipleTopKDerivedScalarsRequest, gateway: TheGateway
) -> Response:
    """The nodes with the largest and the smallest scalars, over groups of scalar types."""
    spec = body.multiple_top_k_derived_scalars_request_spec
    request = v1.ListTopNodesRequest(
        inference=inference_message(body.inference_request_spec),
        spec=top_nodes_spec(spec),
    )
    stub = gateway.backends.scalars
    groups = [group.value for group in spec.dst_list_by_group_id]
    async with calling("scalars", "multipleTopKDerivedScalarsRequestSpec", groups):
        answer = await stub.ListTopNodes(request)
    return await gateway.answer(top_nodes_pieces(answer, spec.token_index))


@router.post("/model_info", response_model=ModelInfoResponse)
async def model_info(gateway: TheGateway) -> Response:
    """The model and its autoencoders."""
    stub = gateway.backends.scalars
    async with calling("scalars"):
        info = await stub.GetModelInfo(v1.GetModelInfoRequest())
    autoencoders = {each.node_type: each.name for each in info.autoencoders}
    mlp = autoencoders.get(common.NODE_TYPE_MLP_AUTOENCODER_LATENT)
    attention = autoencoders.get(common.NODE_TYPE_ATTENTION_AUTOENCODER_LATENT)
    return json_answer(
        {
            "modelName": info.name,
            "hasMlpAutoencoder": mlp is not None,
            "mlpAutoencoderName": mlp,
            "hasAttentionAutoencoder": attention is not None,
            "attentionAutoencoderName": attention,
            "nLayers": info.layer_count,
        }
    )


async def _record_maximum(backends: Backends, body: NodeIdAndDatasets, prefix: str) -> float:
    # A batch of one: the answer is by token or by token pair, as the record is.
    request = records.BatchGetRecordsRequest(
        components=[component_message(body)], datasets=body.datasets
    )
    async with calling("records", prefix):
        async for item in backends.records.BatchGetRecords(request):
            outcome = item.WhichOneof("outcome")
            if outcome == "token_record":
                return item.token_record.max_activation
            if outcome == "token_pair_record":
                return item.token_pair_record.max_activation
            failure = item.failure
            answer = from_service_error(
                ClientError(failure.code, failure.message, reason=failure.reason), "records"
            )
            raise answer or internal_error()
    raise internal_error()


async def _token_pair_record(
    backends: Backends, body: NodeIdAndDatasets, prefix: str
) -> records.GetTokenPairRecordResponse:
    request = records.GetTokenPairRecordRequest(
        component=component_message(body), datasets=body.datasets
    )
    async with calling("records", prefix):
        return await backends.records.GetTokenPairRecord(request)


async def _both(first: Awaitable[_Value], second: Awaitable[_Other]) -> tuple[_Value, _Other]:
    """Wait for both; the first failure ends the other."""
    tasks = (asyncio.ensure_future(first), asyncio.ensure_future(second))
    try:
        await asyncio.gather(*tasks)
        return tasks[0].result(), tasks[1].result()
    finally:
        for task in tasks:
            task.cancel()
