"""Waits until services answer their health checks."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from neuropil.channel import open_aio_channel

_PAUSE_SECONDS = 0.05
_CALL_SECONDS = 5.0


async def wait_until_serving(address: str) -> None:
    """Wait until the gRPC server at `address` reports SERVING."""
    async with open_aio_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                answer = await stub.Check(
                    health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS, wait_for_ready=True
                )
            except grpc.aio.AioRpcError:
                pass
            else:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(_PAUSE_SECONDS)


async def wait_until_answering(url: str) -> None:
    """Wait until `url` answers with success."""
    # A proxy of the environment knows nothing of this machine's loopback.
    async with httpx.AsyncClient(trust_env=False, timeout=_CALL_SECONDS) as client:
        while True:
            try:
                answer = await client.get(url)
            except httpx.HTTPError:
                pass
            else:
                if answer.is_success:
                    return
            await asyncio.sleep(_PAUSE_SECONDS)
