"""What the record of a component normalises a prompt's scalars by."""

from __future__ import annotations

from neuropil.common import v1 as common
from neuropil.errors import NeuropilError as ClientError
from neuropil.records import v1 as records
from services.gateway.backends import Backends, calling
from services.gateway.errors import from_service_error, internal_error
from services.gateway.paths import within
from services.gateway.requests.components import NodeIdAndDatasets
from services.gateway.routes.read import component_message


async def record_maximum(backends: Backends, body: NodeIdAndDatasets, path: str) -> float:
    """The largest activation of a record by token or by token pair; `path`: where `body` stands."""
    # A batch of one: the answer is by token or by token pair, as the record is.
    request = records.BatchGetRecordsRequest(
        components=[component_message(body)], datasets=body.datasets
    )
    async with calling("records", within(path)):
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


async def record_sequences(
    backends: Backends, body: NodeIdAndDatasets, path: str
) -> common.TokenPairSequences:
    """The top sequences of a record by token pair; `path`: where `body` stands."""
    request = records.GetTokenPairRecordRequest(
        component=component_message(body), datasets=body.datasets
    )
    async with calling("records", within(path)):
        record = await backends.records.GetTokenPairRecord(request)
    return record.top_sequences
