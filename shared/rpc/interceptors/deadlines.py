"""Gives every call a deadline, and ends it there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.errors import DeadlineExceeded
from shared.rpc.context import enter_deadline
from shared.rpc.interceptors.wrapping import Context, Interceptor


class DeadlineInterceptor(Interceptor):
    """Takes over the caller's deadline; a call that brings none gets the default."""

    def __init__(self, default_seconds: float) -> None:
        self._default = default_seconds

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Cancel what the call does when its time is over."""
        left = context.time_remaining()
        seconds = self._default if left is None else max(0.0, left)
        enter_deadline(seconds)
        try:
            async with asyncio.timeout(seconds) as timeout:
                yield
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise DeadlineExceeded(
                f"the call did not end within {seconds:.3g} s",
                metadata={"deadline_seconds": f"{seconds:.6g}"},
            ) from error
