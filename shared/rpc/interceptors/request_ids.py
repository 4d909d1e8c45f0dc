"""Gives every call an id, the caller's where it sent one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from shared.rpc.context import REQUEST_ID_KEY, enter_request
from shared.rpc.interceptors.wrapping import Context, Interceptor


class RequestIdInterceptor(Interceptor):
    """Outermost, so that everything that is logged during the call bears its id."""

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Bind the id for the time of the call."""
        sent = dict(context.invocation_metadata() or ()).get(REQUEST_ID_KEY, "")
        chosen = enter_request(sent if isinstance(sent, str) else "")
        with structlog.contextvars.bound_contextvars(request_id=chosen):
            yield
