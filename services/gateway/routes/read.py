"""Routes that read records and explanations."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from fastapi import APIRouter
from starlette.responses import Response

from neuropil.common import v1 as common
from neuropil.names import DERIVED_SCALAR_TYPES
from neuropil.records import v1
from services.gateway.backends import calling, carried
from services.gateway.encoding import token_pair_record_pieces, token_record_pieces
from services.gateway.gateway import TheGateway, json_answer
from services.gateway.requests.components import (
    ComponentId,
    ExistingExplanationsRequest,
    NodeIdAndDatasets,
)
from services.gateway.responses.common import PROBLEMS
from services.gateway.responses.records import (
    AttentionHeadRecordResponse,
    AttributedScoredExplanation,
    NeuronDatasetMetadata,
    NeuronRecordResponse,
)
from shared.errors import InvalidArgument

PARTIAL_HEADER = "X-Neuropil-Partial"
"""Names, percent-encoded and separated by commas, the datasets that could not be read."""

VIEWER_SCALAR_TYPES = frozenset(
    {
        "autoencoder_latent",
        "mlp_autoencoder_latent",
        "attention_autoencoder_latent",
        "online_autoencoder_latent",
        "mlp_post_act",
        "attn_write_norm",
        "flattened_attn_write_to_latent_summed_over_heads",
        "flattened_attn_write_to_latent_summed_over_heads_batched",
        "residual",
    }
)
"""What the viewer knows; any other one blanks its welcome page."""

_MAX_PARTIAL_HEADER = 4096
"""Characters; names beyond them are left out, and dots say so."""

router = APIRouter(tags=["read"], responses=PROBLEMS)


@router.post("/existing_explanations", response_model=list[AttributedScoredExplanation])
async def existing_explanations(body: ExistingExplanationsRequest, gateway: TheGateway) -> Response:
    """Explanations of a component with their scores, from one or several datasets."""
    if bool(body.explanation_datasets) == (body.neuron_dataset is not None):
        raise InvalidArgument(
            "exactly one of explanationDatasets and neuronDataset is needed",
            field="explanationDatasets",
        )
    request = v1.ListExplanationsRequest(component=component_message(body))
    if body.neuron_dataset is None:
        request.explanation_datasets.paths.extend(body.explanation_datasets)
    else:
        request.neuron_dataset = body.neuron_dataset
    async with calling("records"):
        found = await gateway.backends.records.ListExplanations(request)
    answer = [
        {
            "explanation": each.text,
            "score": each.score if each.HasField("score") else None,
            "datasetName": each.dataset_name,
        }
        for each in found.explanations
    ]
    headers = {PARTIAL_HEADER: _partial(found.failures)} if found.failures else {}
    return json_answer(answer, headers)


def _partial(failures: Iterable[v1.Failure]) -> str:
    names = ""
    for failure in failures:
        name = quote(failure.dataset, safe="/:")
        longer = f"{names},{name}" if names else name
        if len(longer) > _MAX_PARTIAL_HEADER:
            return f"{names},..." if names else "..."
        names = longer
    return names


@router.post("/neuron_record", response_model=NeuronRecordResponse)
async def neuron_record(body: NodeIdAndDatasets, gateway: TheGateway) -> Response:
    """The record of a component with one activation a token."""
    request = v1.GetTokenRecordRequest(
        component=component_message(body), datasets=body.datasets, view=_view(body)
    )
    async with calling("records"):
        record = await gateway.backends.plain_records.GetTokenRecord(request, **carried())
    return await gateway.answer(token_record_pieces(record))


@router.post("/attention_head_record", response_model=AttentionHeadRecordResponse)
async def attention_head_record(body: NodeIdAndDatasets, gateway: TheGateway) -> Response:
    """The record of a component with one activation a token pair."""
    request = v1.GetTokenPairRecordRequest(
        component=component_message(body), datasets=body.datasets, view=_view(body)
    )
    async with calling("records"):
        record = await gateway.backends.plain_records.GetTokenPairRecord(request, **carried())
    return await gateway.answer(token_pair_record_pieces(record))


RECORD_ROUTES = {
    "/neuron_record": neuron_record,
    "/attention_head_record": attention_head_record,
}
"""Routes that the framework need not surround, and whose answers the gateway may keep.

Explanations change, and are always asked for.
"""


@router.post("/neuron_datasets_metadata", response_model=list[NeuronDatasetMetadata])
async def neuron_datasets_metadata(gateway: TheGateway) -> Response:
    """The datasets of records that the viewer can show."""
    async with calling("records"):
        listed = await gateway.backends.records.ListDatasets(v1.ListDatasetsRequest())
    return json_answer(
        [
            {
                "shortName": each.short_name,
                "derivedScalarType": each.derived_scalar_type_name,
                "userVisibleName": each.user_visible_name,
                "neuronDatasetPath": each.neuron_dataset_path,
            }
            for each in listed.datasets
            if each.derived_scalar_type_name in VIEWER_SCALAR_TYPES
        ]
    )


def component_message(body: ComponentId) -> common.ComponentId:
    """The component that a body names."""
    return common.ComponentId(
        derived_scalar_type=DERIVED_SCALAR_TYPES.value(body.dst.value),
        layer_index=body.layer_index,
        component_index=body.activation_index,
    )


def _view(body: NodeIdAndDatasets) -> v1.RecordView:
    return v1.RecordView(
        include_quantile_samples=body.include_quantile_samples, include_moments=body.include_moments
    )
