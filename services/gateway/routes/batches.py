"""Routes that run the model several times, and derive much from each run."""

from __future__ import annotations

from collections.abc import Awaitable

from fastapi import APIRouter
from starlette.responses import Response

from neuropil.common import v1 as common
from neuropil.scalars import v1
from services.gateway.backends import Backends, all_of, calling
from services.gateway.batches import BatchPath, batch_request, spec_path
from services.gateway.debugger import debugger_request, spelt_out
from services.gateway.debugger_paths import DebuggerPath
from services.gateway.errors import GatewayError
from services.gateway.gateway import TheGateway
from services.gateway.inference_encoding import BatchAnswer, Scale
from services.gateway.paths import FieldPath
from services.gateway.record_scales import record_maximum, record_sequences
from services.gateway.requests.batches import BatchedRequest
from services.gateway.requests.debugger import BatchedTdbRequest
from services.gateway.requests.specs import (
    DerivedAttentionScalarsRequestSpec,
    DerivedScalarsRequestSpec,
)
from services.gateway.responses.batches import BatchedResponse
from services.gateway.responses.common import PROBLEMS

_TOKEN_PAIR = [
    common.DIMENSION_SEQUENCE_TOKENS,
    common.DIMENSION_ATTENDED_TO_SEQUENCE_TOKENS,
]

router = APIRouter(tags=["inference"], responses=PROBLEMS)


@router.post("/batched", response_model=BatchedResponse)
async def batched(body: BatchedRequest, gateway: TheGateway) -> Response:
    """Several runs of the model, and several things derived from each."""
    backends = gateway.backends
    request = batch_request(body)
    try:
        responses, scales = await all_of(
            _derive(backends, request, BatchPath(body)), _scales(backends, body)
        )
    except GatewayError as error:
        raise await _explained(error, body, backends) from error
    return await gateway.answer(BatchAnswer(body, scales).pieces(responses))


@router.post("/batched_tdb", response_model=BatchedResponse)
async def batched_tdb(body: BatchedTdbRequest, gateway: TheGateway) -> Response:
    """All that the debugger page shows of each prompt."""
    backends = gateway.backends
    batch = spelt_out(body)
    responses = await _derive(backends, debugger_request(body, batch), DebuggerPath(body))
    return await gateway.answer(BatchAnswer(batch, {}).pieces(responses))


async def _derive(
    backends: Backends, request: v1.BatchDeriveRequest, path: FieldPath
) -> list[v1.BatchDeriveResponse]:
    stub = backends.scalars
    async with calling("scalars", path):
        return [response async for response in stub.BatchDerive(request)]


async def _scales(backends: Backends, body: BatchedRequest) -> dict[tuple[int, str], Scale]:
    """What the records that specs name normalise by, by position and name of the spec."""
    wanted: dict[tuple[int, str], Awaitable[Scale]] = {}
    for position, sub_request in enumerate(body.inference_sub_requests):
        for name, spec in sub_request.processing_request_spec_by_name.items():
            if not isinstance(spec, DerivedScalarsRequestSpec | DerivedAttentionScalarsRequestSpec):
                continue
            record = spec.normalize_activations_using_neuron_record
            path = f"{spec_path(position, name)}.normalizeActivationsUsingNeuronRecord"
            if record is None:
                continue
            if isinstance(spec, DerivedScalarsRequestSpec):
                wanted[position, name] = record_maximum(backends, record, path)
            else:
                wanted[position, name] = record_sequences(backends, record, path)
    return dict(zip(wanted, await all_of(*wanted.values()), strict=True))


async def _explained(error: GatewayError, body: BatchedRequest, backends: Backends) -> GatewayError:
    """The failure of a batch; of scalars by token pair whose spec has no type, what it lacks.

    Without a type they can't be told from scalars by token, which the service refuses them as.
    """
    for position, sub_request in enumerate(body.inference_sub_requests):
        for name, spec in sub_request.processing_request_spec_by_name.items():
            path = spec_path(position, name)
            if (
                error.body["field"] == f"{path}.dst"
                and "spec_type" not in spec.model_fields_set
                and isinstance(spec, DerivedScalarsRequestSpec)
                and await _is_by_token_pair(spec.dst.value, backends)
            ):
                return GatewayError(
                    400,
                    f"{path}.specType: {spec.dst.value} is derived by token pair, which a spec "
                    "without specType is not; send derived_attention_scalars_request_spec",
                    code="INVALID_ARGUMENT",
                    reason="INVALID_ARGUMENT",
                    field=f"{path}.specType",
                )
    return error


async def _is_by_token_pair(scalar_type: str, backends: Backends) -> bool:
    stub = backends.scalars
    async with calling("scalars"):
        catalogue = await stub.ListScalarTypes(v1.ListScalarTypesRequest())
    return any(
        each.name == scalar_type and list(each.dimensions[:-1]) == _TOKEN_PAIR
        for each in catalogue.scalar_types
    )
