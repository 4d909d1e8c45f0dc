"""`python -m tests.load.plain_http BYTES`: the least that a Python HTTP server can do.

A bare ASGI application on the gateway's own server that answers every request with the same bytes.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvicorn


class _Plain:
    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self._payload)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._payload})


class _Announcing(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(f"serving plain 127.0.0.1:{port}", flush=True)


if __name__ == "__main__":
    config = uvicorn.Config(
        _Plain(b"0" * int(sys.argv[1])),
        port=0,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="error",
    )
    asyncio.run(_Announcing(config).serve())
