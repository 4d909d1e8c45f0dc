"""What a failed call raises, so that callers never touch grpcio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


class NeuropilError(Exception):
    """A call failed.

    Attributes:
        code: name of the gRPC status code, for example ``NOT_FOUND``.
        reason: UPPER_SNAKE_CASE for programs, stable; empty where the failure is the transport's.
        message: a sentence for people.
        field: path of the request field at fault, or empty.
        metadata: what a program may act on, for example the datasets tried.
        retry_after_seconds: when to try again, where the server says so.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        metadata: dict[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.metadata = metadata or {}
        self.retry_after_seconds = retry_after_seconds


class PartialAnswerWarning(UserWarning):
    """A call succeeded, but a part of its answer is missing; the text says which, and why."""


def from_rpc_error(error: grpc.RpcError) -> NeuropilError:
    """Read code, message and rich details of a failed call, synchronous or not."""
    call: Any = error
    code = call.code()
    metadata: Iterable[tuple[str, str | bytes]] = call.trailing_metadata() or ()
    details = next((value for key, value in metadata if key == _DETAILS_KEY), None)
    reason, field, facts, retry_after = "", "", {}, None
    if isinstance(details, bytes):
        status = status_pb2.Status.FromString(details)
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            bad_request = error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason, facts = info.reason, dict(info.metadata)
            elif detail.Unpack(bad_request) and bad_request.field_violations:
                field = bad_request.field_violations[0].field
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    name = "UNKNOWN" if code is None else code.name
    message = call.details() or "no details"
    if name == "DEADLINE_EXCEEDED" and not reason:
        # The transport's words differ with what it was doing, and are about that.
        message = "the call took longer than its deadline"
    return NeuropilError(
        name,
        message,
        reason=reason,
        field=field,
        metadata=facts,
        retry_after_seconds=retry_after,
    )


@contextmanager
def translated() -> Iterator[None]:
    """Turn a failed call inside the block into a `NeuropilError`."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    except ValueError as error:
        # What grpc raises instead of an RpcError; it has no type of its own.
        if "closed channel" in str(error):
            raise NeuropilError("CANCELLED", "the client is closed") from None
        raise


@asynccontextmanager
async def atranslated() -> AsyncIterator[None]:
    """The same for calls that are awaited."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
