"""Domain errors as google.rpc status, and back for calls between services."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from neuropil.errors import NeuropilError as ClientError
from shared import errors
from shared.short_texts import short_message, short_metadata, shortened

_BY_CODE: dict[str, type[errors.NeuropilError]] = {
    kind.code: kind
    for kind in (
        errors.InvalidArgument,
        errors.NotFound,
        errors.DataLoss,
        errors.FailedPrecondition,
        errors.Aborted,
        errors.ResourceExhausted,
        errors.DeadlineExceeded,
        errors.Unavailable,
        errors.Unimplemented,
    )
}


_FIELD_BYTES = 256


def to_status(error: errors.NeuropilError) -> status_pb2.Status:
    """Code and message, with ErrorInfo, and BadRequest and RetryInfo where they apply.

    Texts that are too long for the trailers of an answer have "…" in place of their middle.
    """
    text = short_message(error.message)
    metadata = short_metadata(error.metadata)
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=errors.DOMAIN, metadata=metadata)
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=shortened(error.field, _FIELD_BYTES), description=text, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        wrapper = any_pb2.Any()
        wrapper.Pack(detail)
        packed.append(wrapper)
    code: int = grpc.StatusCode[error.code].value[0]
    return status_pb2.Status(code=code, message=text, details=packed)


def from_client_error(error: ClientError) -> errors.NeuropilError | None:
    """The domain error that another service answered, to be passed on to the caller.

    None where the other service failed in a way that is not the caller's business (INTERNAL and
    the like): the caller is told of a defect of ours, not of that service's text.
    """
    kind = _BY_CODE.get(error.code)
    if kind is None:
        return None
    return kind(
        error.message,
        field=error.field,
        reason=error.reason,
        metadata=error.metadata,
        retry_after_seconds=error.retry_after_seconds,
    )
