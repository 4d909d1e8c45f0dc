"""Turns whatever a call raises into a status that the caller can act on."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import structlog

from neuropil.errors import NeuropilError as ClientError
from shared.errors import NeuropilError
from shared.rpc.interceptors.wrapping import Behavior, Context, Interceptor
from shared.rpc.status import from_client_error, to_status

INTERNAL_TEXT = "internal error; the server's log has more under this request id"

_log = structlog.get_logger(__name__)


class ErrorInterceptor(Interceptor):
    """Answers domain errors with details, and anything unknown as INTERNAL with a fixed text."""

    def unary(self, method: str, behavior: Behavior) -> Behavior:
        """End the call with the status of what it raises."""

        async def call(request: Any, context: Context) -> Any:
            try:
                return await behavior(request, context)
            except Exception as error:  # noqa: BLE001 - the last line of defence: nothing may escape
                await _answer(error, method, context)

        return call


async def _answer(error: Exception, method: str, context: Context) -> None:
    """End the call with the status of what it raised; raises what ends its method."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    known: NeuropilError | None = None
    if isinstance(error, NeuropilError):
        known = error
    elif isinstance(error, ClientError):
        known = from_client_error(error)
        if known is None:
            _log.error("dependency_failed", method=method, code=error.code, exc_info=error)
    else:
        _log.error("unexpected_error", method=method, exc_info=error)
    await abort(context, known or NeuropilError(INTERNAL_TEXT))


async def abort(context: Context, error: NeuropilError) -> None:
    """Send an error as the status of a call; raises what ends its method."""
    status = to_status(error)
    await context.abort(
        grpc.StatusCode[error.code],
        status.message,
        trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),),
    )
