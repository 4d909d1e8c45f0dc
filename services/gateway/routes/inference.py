"""Routes that run the model."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from neuropil.common import v1 as common
from neuropil.scalars import v1
from services.gateway.backends import all_of, calling
from services.gateway.gateway import TheGateway, json_answer
from services.gateway.inference import (
    component_by_token_pair_spec,
    component_spec,
    inference_message,
    top_nodes_spec,
)
from services.gateway.inference_encoding import (
    derived_attention_scalars_answer,
    derived_scalars_answer,
    top_nodes_answer,
)
from services.gateway.paths import within
from services.gateway.record_scales import record_maximum, record_sequences
from services.gateway.requests.specs import (
    DerivedAttentionScalarsRequest,
    DerivedScalarsRequest,
    MultipleTopKDerivedScalarsRequest,
)
from services.gateway.responses.common import PROBLEMS
from services.gateway.responses.inference import (
    DerivedAttentionScalarsResponse,
    DerivedScalarsResponse,
    ModelInfoResponse,
    MultipleTopKDerivedScalarsResponse,
)

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
        async with calling("scalars", within(prefix)):
            return await stub.DeriveComponent(request)

    record = spec.normalize_activations_using_neuron_record
    if record is None:
        return await gateway.answer(derived_scalars_answer(await derive(), None))
    derived, maximum = await all_of(
        derive(),
        record_maximum(backends, record, f"{prefix}.normalizeActivationsUsingNeuronRecord"),
    )
    return await gateway.answer(derived_scalars_answer(derived, maximum))


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
        async with calling("scalars", within(prefix)):
            return await stub.DeriveComponentByTokenPair(request)

    record = spec.normalize_activations_using_neuron_record
    if record is None:
        return await gateway.answer(derived_attention_scalars_answer(await derive(), None))
    derived, sequences = await all_of(
        derive(),
        record_sequences(backends, record, f"{prefix}.normalizeActivationsUsingNeuronRecord"),
    )
    return await gateway.answer(derived_attention_scalars_answer(derived, sequences))


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
    async with calling("scalars", within("multipleTopKDerivedScalarsRequestSpec", groups)):
        answer = await stub.ListTopNodes(request)
    return await gateway.answer(top_nodes_answer(answer, spec.token_index))


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
