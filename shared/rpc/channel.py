"""Channels from one service to another: the caller's id and deadline go along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc.aio

from neuropil.channel import MEBIBYTE, open_aio_channel
from shared.rpc.context import REQUEST_ID_KEY, request_id, seconds_left


class _CarryOn:
    def _details(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        left = seconds_left()
        timeout = details.timeout
        if left is not None:
            timeout = left if timeout is None else min(timeout, left)
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if request_id():
            metadata.add(REQUEST_ID_KEY, request_id())
        return grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=timeout,
            metadata=metadata,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


class _CarryOnUnary(_CarryOn, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(self._details(client_call_details), request)


class _CarryOnStream(_CarryOn, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(self._details(client_call_details), request)


def open_service_channel(address: str, *, message_megabytes: int) -> grpc.aio.Channel:
    """Open a channel to another service; must be called in a running loop."""
    return open_aio_channel(
        address,
        message_bytes=message_megabytes * MEBIBYTE,
        interceptors=[_CarryOnUnary(), _CarryOnStream()],
    )
