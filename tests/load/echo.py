"""`python -m tests.load.echo BYTES`: the least that a Python gRPC server can do.

It answers every call with the same bytes: no interceptor, no parsing, no cache. What Neuropil's
services are compared with.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import grpc
import grpc.aio
import uvloop

METHOD = "/echo/Echo"


class _Echo(grpc.GenericRpcHandler):
    def __init__(self, payload: bytes) -> None:
        async def answer(request: bytes, context: Any) -> bytes:
            return payload

        self._handler = grpc.unary_unary_rpc_method_handler(answer)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler


async def main(size: int) -> None:
    """Serve until SIGTERM."""
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers([_Echo(bytes(size))])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"serving echo 127.0.0.1:{port}", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
