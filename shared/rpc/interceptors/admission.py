"""Sheds load before it piles up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.errors import ResourceExhausted
from shared.rpc.interceptors.wrapping import Context, Interceptor, Unary


class AdmissionInterceptor(Interceptor):
    """Refuses calls over the number that one process takes on at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Count the call while it runs."""
        self._enter()
        try:
            yield
        finally:
            self._running -= 1

    def unary(self, method: str, behavior: Unary) -> Unary:
        """The same for a unary method."""

        async def call(request: Any, context: Context) -> Any:
            self._enter()
            try:
                return await behavior(request, context)
            finally:
                self._running -= 1

        return call

    def _enter(self) -> None:
        if self._running >= self._limit:
            raise ResourceExhausted(
                f"{self._limit} calls are running or waiting already",
                reason="QUEUE_FULL",
                metadata={"limit": str(self._limit)},
                retry_after_seconds=1.0,
            )
        self._running += 1
