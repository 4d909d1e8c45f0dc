"""The services behind the gateway: their channels, stubs and health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, overload

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuropil.channel import MEBIBYTE, open_aio_channel
from neuropil.errors import from_rpc_error
from neuropil.records import v1 as records
from neuropil.scalars import v1 as scalars
from neuropil.simulation import v1 as simulation
from services.gateway.errors import (
    MODEL_NOT_CONFIGURED,
    GatewayError,
    from_service_error,
    internal_error,
)
from services.gateway.paths import FieldPath, json_path
from shared.rpc.channel import open_service_channel
from shared.rpc.context import REQUEST_ID_KEY, request_id, seconds_left
from shared.settings import Deployment

if TYPE_CHECKING:
    from neuropil.records.v1.records_service_pb2_grpc import RecordReaderAsyncStub
    from neuropil.scalars.v1.scalars_service_pb2_grpc import DerivedScalarsAsyncStub
    from neuropil.simulation.v1.simulation_service_pb2_grpc import SimulationAsyncStub

_Value = TypeVar("_Value")
_Other = TypeVar("_Other")

_HEALTH_SECONDS = 2.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Backends:
    """One channel to each service. Without a model there are no derived scalars."""

    channels: dict[str, grpc.aio.Channel]
    records: RecordReaderAsyncStub
    plain_records: RecordReaderAsyncStub
    """The same without interceptors, which cost a call of grpc.aio a task: pass `carried()`."""

    simulation: SimulationAsyncStub
    optional_scalars: DerivedScalarsAsyncStub | None

    @property
    def scalars(self) -> DerivedScalarsAsyncStub:
        """Derived scalars; 503 where the deployment has no model."""
        if self.optional_scalars is None:
            raise GatewayError(
                503,
                "this deployment has no model; add `model` to its configuration",
                code="FAILED_PRECONDITION",
                reason=MODEL_NOT_CONFIGURED,
            )
        return self.optional_scalars

    async def health(self) -> dict[str, bool]:
        """Whether each service answers its health check with SERVING."""
        names = list(self.channels)
        answers = await asyncio.gather(*(_is_serving(self.channels[name]) for name in names))
        return dict(zip(names, answers, strict=True))


async def _is_serving(channel: grpc.aio.Channel) -> bool:
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def open_backends(deployment: Deployment) -> AsyncIterator[Backends]:
    """Open the channels; they connect when first used, and close at the end."""
    addresses = {"records": deployment.services.records}
    if deployment.model is not None:
        addresses["scalars"] = deployment.services.scalars
    addresses["simulation"] = deployment.services.simulation
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(
                open_service_channel(address, message_megabytes=deployment.limits.message_megabytes)
            )
            for name, address in addresses.items()
        }
        plain = await stack.enter_async_context(
            open_aio_channel(
                deployment.services.records,
                message_bytes=deployment.limits.message_megabytes * MEBIBYTE,
            )
        )
        derived = channels.get("scalars")
        yield Backends(
            channels,
            records.RecordReaderStub(channels["records"]),
            records.RecordReaderStub(plain),
            simulation.SimulationStub(channels["simulation"]),
            None if derived is None else scalars.DerivedScalarsStub(derived),
        )


class Carried(TypedDict):
    """What goes along with a call."""

    timeout: float | None
    metadata: tuple[tuple[str, str], ...]


def carried() -> Carried:
    """The id and the deadline of the request that is being served, for a call made for it."""
    return {"timeout": seconds_left(), "metadata": ((REQUEST_ID_KEY, request_id()),)}


@asynccontextmanager
async def calling(service: str, path: FieldPath = json_path) -> AsyncIterator[None]:
    """Answer a failed call of `service` inside the block with the failure that the client sees.

    `path` gives a field of the contract as the client wrote it.
    """
    try:
        yield
    except grpc.RpcError as error:
        failure = from_rpc_error(error)
        answer = from_service_error(failure, service, path)
        if answer is None:
            _log.error("service_failed", to=service, code=failure.code, detail=failure.message)
            answer = internal_error()
        raise answer from error


@overload
async def all_of(
    first: Awaitable[_Value], second: Awaitable[_Other], /
) -> tuple[_Value, _Other]: ...


@overload
async def all_of(*awaited: Awaitable[_Value]) -> tuple[_Value, ...]: ...


async def all_of(*awaited: Awaitable[Any]) -> tuple[Any, ...]:
    """Wait for calls side by side; the first failure ends the others."""
    tasks = [asyncio.ensure_future(each) for each in awaited]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
