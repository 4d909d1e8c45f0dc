"""Sheds load before it piles up."""

from __future__ import annotations

from typing import Any

from shared.errors import ResourceExhausted
from shared.rpc.interceptors.wrapping import Behavior, Context, Interceptor


class AdmissionInterceptor(Interceptor):
    """Refuses calls over the number that one process takes on at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0

    def unary(self, method: str, behavior: Behavior) -> Behavior:
        """Count the call while it runs."""

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
