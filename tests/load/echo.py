"""`python -m tests.load.echo BYTES [surrounded]`: the least that a Python gRPC server can do.

It answers every call with the same bytes, once or as a stream: no interceptor, no parsing, no
cache. What Neuropil's services are compared with. With `surrounded` it answers the record reader's
methods, behind the interceptors of every service.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import grpc
import grpc.aio
import uvloop

from neuropil.records.v1 import DESCRIPTOR
from shared.logs import configure_logs
from shared.rpc.server import RpcService, ServerOptions, start_server

METHOD = "/echo/Echo"

STREAM = "/echo/Stream"
"""Answers a number, in digits, with so many messages."""


class _Echo(grpc.GenericRpcHandler):
    def __init__(self, payload: bytes) -> None:
        async def answer(request: bytes, context: Any) -> bytes:
            return payload

        async def stream(request: bytes, context: Any) -> None:
            for _ in range(int(request)):
                await context.write(payload)

        self._handlers = {
            METHOD: grpc.unary_unary_rpc_method_handler(answer),
            STREAM: grpc.unary_stream_rpc_method_handler(stream),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        # A client may ask for the server's health: there is none to be had.
        return self._handlers.get(handler_call_details.method)


class _Servicer:
    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    def __getattr__(self, name: str) -> Any:
        async def answer(request: Any, context: Any) -> bytes:
            return self._payload

        return answer


async def surrounded(size: int) -> None:
    """Serve the record reader's unary methods until SIGTERM, behind the usual interceptors."""
    service = RpcService(DESCRIPTOR.services_by_name["RecordReader"], _Servicer(bytes(size)))
    running = await start_server([service], ServerOptions("echo"))
    print(f"serving echo 127.0.0.1:{running.port}", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await running.drain(0)


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
    configure_logs("echo")
    serve = surrounded if "surrounded" in sys.argv else main
    uvloop.run(serve(int(sys.argv[1])))
