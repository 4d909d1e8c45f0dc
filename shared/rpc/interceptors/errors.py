"""Turns whatever a call raises into a status that the caller can act on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import structlog

from neuropil.errors import NeuropilError as ClientError
from shared.errors import NeuropilError
from shared.rpc.interceptors.wrapping import Context, Interceptor
from shared.rpc.status import from_client_error, to_status

INTERNAL_TEXT = "internal error; the server's log has more under this request id"

_log = structlog.get_logger(__name__)


class ErrorInterceptor(Interceptor):
    """Answers domain errors with details, and anything unknown as INTERNAL with a fixed text."""

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """End the call with the status of what it raises."""
        try:
            yield
        except NeuropilError as error:
            await abort(context, error)
        except ClientError as error:
            passed_on = from_client_error(error)
            if passed_on is None:
                _log.exception("dependency_failed", method=method, code=error.code)
                passed_on = NeuropilError(INTERNAL_TEXT)
            await abort(context, passed_on)
        except grpc.aio.AbortError:
            raise
        except Exception:  # noqa: BLE001 - the last line of defence: nothing else may escape
            _log.exception("unexpected_error", method=method)
            await abort(context, NeuropilError(INTERNAL_TEXT))


async def abort(context: Context, error: NeuropilError) -> None:
    """Send an error as the status of a call; raises what ends its method."""
    status = to_status(error)
    await context.abort(
        grpc.StatusCode[error.code],
        error.message,
        trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),),
    )
