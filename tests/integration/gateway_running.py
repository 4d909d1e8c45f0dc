"""Runs the gateway, and services behind it, on sockets of the test's own loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from neuropil.records import v1 as records
from neuropil.scalars import v1 as scalars
from neuropil.simulation import v1 as simulation
from services.gateway.server import listen, make_server
from shared import errors
from shared.rpc.server import RpcService, RunningServer, ServerOptions, start_server
from shared.settings import Deployment, Limits, Model, Services

_DESCRIPTORS = {
    "records": records.DESCRIPTOR.services_by_name["RecordReader"],
    "scalars": scalars.DESCRIPTOR.services_by_name["DerivedScalars"],
    "simulation": simulation.DESCRIPTOR.services_by_name["Simulation"],
}
_STREAMING = frozenset(
    method.name
    for descriptor in _DESCRIPTORS.values()
    for method in descriptor.methods
    if method.server_streaming
)


class Servicer:
    """A service of the contract that serves what a test gives it, and refuses the rest."""

    def __init__(self, **methods: Any) -> None:
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def unserved(request: Any, context: Any) -> Any:
            raise errors.Unimplemented(f"{name} is not served yet")

        async def unserved_stream(request: Any, context: Any) -> AsyncIterator[Any]:
            raise errors.Unimplemented(f"{name} is not served yet")
            yield

        return self._methods.get(name, unserved_stream if name in _STREAMING else unserved)


@asynccontextmanager
async def service(
    name: str, servicer: object, *, limits: Limits | None = None
) -> AsyncIterator[RunningServer]:
    """A real server of one of the services."""
    options = ServerOptions(name, limits=limits or Limits())
    running = await start_server([RpcService(_DESCRIPTORS[name], servicer)], options)
    try:
        yield running
    finally:
        await running.drain(1)


@asynccontextmanager
async def gateway(deployment: Deployment) -> AsyncIterator[httpx.AsyncClient]:
    """The gateway of a deployment, and a client of it."""
    listening = asyncio.Event()
    server = make_server(deployment, listening.set)
    with listen("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await asyncio.wait_for(listening.wait(), 10)
        host, port = listener.getsockname()
        try:
            async with httpx.AsyncClient(
                base_url=f"http://{host}:{port}", timeout=30, trust_env=False
            ) as client:
                yield client
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def gateway_to(
    *,
    records: object | None = None,
    scalars: object | None = None,
    simulation: object | None = None,
    **settings: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway to these servicers; services that are not given are not there."""
    given = {"records": records, "scalars": scalars, "simulation": simulation}
    addresses = {name: f"127.0.0.1:{_closed_port()}" for name in given}
    async with _all(
        {name: each for name, each in given.items() if each is not None}, addresses
    ) as found:
        if scalars is not None:
            settings.setdefault("model", Model(name="made-up", path="made-up"))
        async with gateway(Deployment(services=Services(**found), **settings)) as client:
            yield client


@asynccontextmanager
async def _all(
    servicers: dict[str, object], addresses: dict[str, str]
) -> AsyncIterator[dict[str, str]]:
    if not servicers:
        yield addresses
        return
    name, servicer = next(iter(servicers.items()))
    rest = {other: each for other, each in servicers.items() if other != name}
    async with service(name, servicer) as running:
        address = f"127.0.0.1:{running.port}"
        async with _all(rest, {**addresses, name: address}) as found:
            yield found


def _closed_port() -> int:
    # Bound once and closed again: nothing listens there.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
