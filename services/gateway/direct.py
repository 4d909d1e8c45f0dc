"""Plain requests of the record routes, answered without the framework in between.

The framework takes about as long for a request as the call that it makes. A body that fits is
answered here, by the function that the framework would call; anything else (another content type,
a body that is large, broken or refused) goes to the framework, which says what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError
from starlette.responses import Response

from services.gateway.bodies import Replay, received, whole
from services.gateway.gateway import Gateway
from services.gateway.requests.components import NodeIdAndDatasets

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

Answering = Callable[[NodeIdAndDatasets, Gateway], Awaitable[Response]]


class DirectRoutes:
    """Answers some routes of an application.

    `routes`: what answers them, by path. `gateway`: gives the gateway once the application runs.
    Failures are raised as `GatewayError`.
    """

    def __init__(
        self, app: ASGIApp, *, routes: Mapping[str, Answering], gateway: Callable[[], Gateway]
    ) -> None:
        self.application = app
        self._routes = dict(routes)
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a plain request, or have the application answer."""
        answering = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if answering is None or scope["method"] != "POST" or not _says_json(scope):
            await self.application(scope, receive, send)
            return
        messages = await received(receive)
        body = _parsed(whole(messages))
        if body is None:
            await self.application(scope, Replay(messages, receive), send)
            return
        response = await answering(body, self._gateway())
        await response(scope, receive, send)


def _says_json(scope: Scope) -> bool:
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    return types == [b"application/json"]


def _parsed(body: bytes | None) -> NodeIdAndDatasets | None:
    if not body:
        return None
    try:
        return NodeIdAndDatasets.model_validate(json.loads(body))
    except (ValidationError, ValueError, RecursionError):
        return None
