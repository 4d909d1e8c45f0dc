"""The one place that builds, runs and ends a gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import structlog
import uvloop
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from neuropil.channel import MEBIBYTE
from shared.errors import ConfigurationError
from shared.logs import configure_logs
from shared.metrics import MetricsServer
from shared.rpc.interceptors.admission import AdmissionInterceptor
from shared.rpc.interceptors.deadlines import DeadlineInterceptor
from shared.rpc.interceptors.errors import ErrorInterceptor
from shared.rpc.interceptors.kept_replies import KeptReply, answer_kept, kept_or_parsed
from shared.rpc.interceptors.observation import ObservationInterceptor
from shared.rpc.interceptors.request_ids import RequestIdInterceptor
from shared.rpc.interceptors.validation import ValidationInterceptor, readable_or_not
from shared.rpc.interceptors.wrapping import (
    Interceptor,
    surround_stream,
    surround_unary,
)
from shared.settings import Limits
from shared.stopping import stopping

DRAIN_SECONDS = 30.0
"""How long running calls may go on after a server was told to end."""

FAREWELL_SECONDS = 0.5
"""How long a server that was told to end still takes calls, for callers to see its health."""

MIN_PING_SECONDS = 10.0
"""A client that asks more often whether its idle connection lives is disconnected."""

_log = structlog.get_logger(__name__)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    # Comes with a trace for every client that leaves in the middle of an answer; that call is
    # logged anyway.
    if record.getMessage().startswith("ExecuteBatchError"):
        return False
    # A health check or a question of reflection that can't be read is its sender's fault alone.
    # Anything else that can't be read is answered by ValidationInterceptor.
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, DecodeError)


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_logging)


@dataclass(frozen=True)
class RpcService:
    """A service of the contract and the object that serves it.

    `servicer` has a coroutine method for each unary method, and an asynchronous generator method
    for each streaming one, with the parameters (request, context). A method may give the
    serialized reply as `bytes`, which goes to the wire as it is.
    """

    descriptor: ServiceDescriptor
    servicer: object
    kept_replies: Mapping[str, KeptReply] = field(default_factory=dict)
    """By method: the reply to a serialized request that was served before and is at hand.

    Such a call is neither parsed nor validated again, and does not suspend.
    """


@dataclass(frozen=True)
class ServerOptions:
    """Where a server listens and what it accepts."""

    name: str
    """Name of the service in logs and in the announcement, for example records."""
    host: str = "127.0.0.1"
    port: int = 0
    """0: a free one."""
    metrics_port: int | None = None
    """None: no metrics; 0: a free one."""
    limits: Limits = field(default_factory=Limits)
    end_with_parent: bool = False
    """Whether to end when standard input closes, as it does when the parent process dies."""


def serialize_reply(reply: Any) -> bytes:
    """The bytes of a reply; a reply that is bytes already is not touched."""
    if isinstance(reply, bytes):
        return reply
    serialized: bytes = reply.SerializeToString()
    return serialized


def _generic_handler(
    service: RpcService, interceptors: Sequence[Interceptor]
) -> grpc.GenericRpcHandler:
    def handler(method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        behavior = getattr(service.servicer, method.name)
        name = f"{service.descriptor.full_name}/{method.name}"
        parse = readable_or_not(
            message_factory.GetMessageClass(method.input_type).FromString,
            method.input_type.full_name,
        )
        formats: dict[str, Any] = {
            "request_deserializer": parse,
            "response_serializer": serialize_reply,
        }
        if method.server_streaming:
            streaming: Any = surround_stream(name, behavior, interceptors)
            return grpc.unary_stream_rpc_method_handler(streaming, **formats)
        unary: Any = surround_unary(name, behavior, interceptors)
        kept = service.kept_replies.get(method.name)
        if kept is not None:
            formats["request_deserializer"] = kept_or_parsed(kept, parse)
            unary = answer_kept(name, unary, interceptors)
        return grpc.unary_unary_rpc_method_handler(unary, **formats)

    return grpc.method_handlers_generic_handler(
        service.descriptor.full_name,
        {method.name: handler(method) for method in service.descriptor.methods},
    )


@dataclass(frozen=True)
class RunningServer:
    """A server that answers calls."""

    server: grpc.aio.Server
    health: health.aio.HealthServicer
    port: int

    async def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Report NOT_SERVING, refuse new calls, let running ones end, then stop."""
        await self.health.enter_graceful_shutdown()
        await self.server.stop(seconds)


async def start_server(services: Sequence[RpcService], options: ServerOptions) -> RunningServer:
    """Start a server with health, reflection, interceptors and limits.

    Raises:
        ConfigurationError: if the address can't be listened on.
    """
    limits = options.limits
    size = limits.message_megabytes * MEBIBYTE
    interceptors = [
        RequestIdInterceptor(),
        ObservationInterceptor(),
        ErrorInterceptor(),
        DeadlineInterceptor(limits.default_deadline_seconds),
        AdmissionInterceptor(limits.queue),
        ValidationInterceptor(),
    ]
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", size),
            ("grpc.max_send_message_length", size),
            # Without this two servers can listen on one port and share its calls unnoticed.
            ("grpc.so_reuseport", 0),
            # The constant in gRPC's headers has RECV in it, its value has not.
            ("grpc.http2.min_ping_interval_without_data_ms", int(MIN_PING_SECONDS * 1000)),
        ],
    )
    server.add_generic_rpc_handlers(
        [_generic_handler(service, interceptors) for service in services]
    )
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = [service.descriptor.full_name for service in services]
    reflection.enable_server_reflection(
        [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    try:
        port = server.add_insecure_port(f"{options.host}:{options.port}")
    except RuntimeError as error:
        raise ConfigurationError(
            f"services.{options.name}",
            f"can't listen on {options.host}:{options.port}; is the port in use?",
        ) from error
    await server.start()
    for name in ("", *names):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return RunningServer(server, health_servicer, port)


Lifespan = Callable[[], AbstractAsyncContextManager[Sequence[RpcService]]]
"""Makes the services, with all that they need, and ends them."""


def serve(lifespan: Lifespan, options: ServerOptions) -> None:
    """Run a server until SIGTERM or SIGINT, then let running calls end.

    Once it answers calls it prints ``serving NAME HOST:PORT`` to standard output.

    Raises:
        ConfigurationError: if it can't start as configured.
    """
    configure_logs(options.name)
    uvloop.run(_serve(lifespan, options))


async def _serve(lifespan: Lifespan, options: ServerOptions) -> None:
    stop = asyncio.Event()
    async with stopping(stop.set, end_with_parent=options.end_with_parent):
        with contextlib.ExitStack() as stack:
            if options.metrics_port is not None:
                metrics = stack.enter_context(MetricsServer(options.host, options.metrics_port))
                _log.info("metrics", address=f"{options.host}:{metrics.port}")
            async with lifespan() as services:
                running = await start_server(services, options)
                address = f"{options.host}:{running.port}"
                _log.info("serving", address=address)
                print(f"serving {options.name} {address}", flush=True)
                await stop.wait()
                _log.info("draining")
                # gRPC cancels what has arrived and was not taken up yet when it stops. Callers that
                # watch the health, as Neuropil's channels do, have gone elsewhere by then.
                await running.health.enter_graceful_shutdown()
                await asyncio.sleep(FAREWELL_SECONDS)
                await running.drain()
    _log.info("ended")
