"""What routes share: the services behind the gateway, and how answers are sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import Response

from services.gateway.backends import Backends
from services.gateway.encoding import Assembler, encode


class Gateway:
    """One for each application."""

    def __init__(self, backends: Backends) -> None:
        self.backends = backends
        self._assembler = Assembler()

    async def answer(self, pieces: Iterable[bytes]) -> Response:
        """An answer that may be large, put together piece by piece."""
        return Response(await self._assembler.assemble(pieces), media_type="application/json")


def json_answer(value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A small answer."""
    return Response(encode(value), headers=dict(headers or {}), media_type="application/json")


async def _gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


TheGateway = Annotated[Gateway, Depends(_gateway_of)]
"""The parameter of a route that receives the gateway."""
