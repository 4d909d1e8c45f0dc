"""Gives every call an id, the caller's where it sent one."""

from __future__ import annotations

from typing import Any

from shared.rpc.context import REQUEST_ID_KEY, enter_request
from shared.rpc.interceptors.wrapping import Behavior, Context, Interceptor


class RequestIdInterceptor(Interceptor):
    """Outermost, so that everything that is logged during the call bears its id."""

    def unary(self, method: str, behavior: Behavior) -> Behavior:
        """Note the id for the time of the call; logs take it from there."""

        async def call(request: Any, context: Context) -> Any:
            _enter(context)
            return await behavior(request, context)

        return call


def _enter(context: Context) -> None:
    sent: str | bytes = ""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY:
            sent = value
    enter_request(sent if isinstance(sent, str) else "")
