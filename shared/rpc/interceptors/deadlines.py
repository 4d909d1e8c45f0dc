"""Gives every call a deadline, and ends it there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import grpc.aio

from shared.errors import DeadlineExceeded
from shared.rpc.context import enter_deadline
from shared.rpc.interceptors.errors import abort
from shared.rpc.interceptors.wrapping import Context, Interceptor, Stream, Unary

_SECONDS_TO_SEND = 0.1


class DeadlineInterceptor(Interceptor):
    """Takes over the caller's deadline; a call that brings none gets the default."""

    def __init__(self, default_seconds: float) -> None:
        self._default = default_seconds
        self._sending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Cancel what the call does when its time is over."""
        seconds = self._enter(context)
        try:
            async with asyncio.timeout(seconds) as timeout:
                yield
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise _exceeded(seconds) from error

    def unary(self, method: str, behavior: Unary) -> Unary:
        """The same for a unary method."""

        async def call(request: Any, context: Context) -> Any:
            seconds = self._enter(context)
            try:
                async with asyncio.timeout(seconds) as timeout:
                    return await behavior(request, context)
            except TimeoutError as error:
                if not timeout.expired():
                    raise
                raise _exceeded(seconds) from error

        return call

    async def stream(
        self, method: str, behavior: Stream, request: Any, context: Context
    ) -> AsyncGenerator[Any, None]:
        """The responses until the time is over.

        A streaming call mostly waits for its client to read. To be cancelled there, outside of its
        method, would end it without a status, and the client would wait for ever: so the status is
        sent first.
        """
        seconds = self._enter(context)
        serving = asyncio.current_task()
        assert serving is not None

        async def end() -> None:
            await asyncio.sleep(seconds)
            # What is under way arrives once the client reads; the work need not wait for that.
            status = asyncio.create_task(_send(context, _exceeded(seconds)))
            self._sending.add(status)
            status.add_done_callback(self._sending.discard)
            await asyncio.wait((status,), timeout=_SECONDS_TO_SEND)
            serving.cancel()

        watch = asyncio.create_task(end())
        try:
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response
        finally:
            watch.cancel()

    def _enter(self, context: Context) -> float:
        left = context.time_remaining()
        seconds = self._default if left is None else max(0.0, left)
        enter_deadline(seconds)
        return seconds


async def _send(context: Context, error: DeadlineExceeded) -> None:
    # That is how `abort` returns, or the call has ended meanwhile, as its caller went.
    with suppress(grpc.aio.BaseError):
        await abort(context, error)


def _exceeded(seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the call did not end within {seconds:.3g} s",
        metadata={"deadline_seconds": f"{seconds:.6g}"},
    )
