"""Gives every call a deadline, and ends it there."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc.aio

from shared.errors import DeadlineExceeded
from shared.rpc.context import enter_deadline
from shared.rpc.interceptors.errors import abort
from shared.rpc.interceptors.wrapping import Behavior, Context, Interceptor

_SECONDS_TO_SEND = 0.1


class DeadlineInterceptor(Interceptor):
    """Takes over the caller's deadline; a call that brings none gets the default."""

    def __init__(self, default_seconds: float) -> None:
        self._default = default_seconds
        self._sending: set[asyncio.Task[None]] = set()

    def unary(self, method: str, behavior: Behavior) -> Behavior:
        """Cancel what the call does when its time is over."""

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

    def stream(self, method: str, behavior: Behavior) -> Behavior:
        """Send the status when the time is over, and cancel what the call does.

        A streaming call mostly waits for its client to read. To be cancelled there would end it
        without a status, and the client would wait for ever: so the status is sent first.
        """

        async def call(request: Any, context: Context) -> None:
            seconds = self._enter(context)
            serving = asyncio.current_task()
            assert serving is not None
            over = asyncio.Event()
            watch = asyncio.create_task(self._end(serving, context, seconds, over))
            try:
                try:
                    await behavior(request, context)
                except Exception:
                    if not over.is_set():
                        raise
                if over.is_set():
                    # Its status is on the way, and there is only one: this call is cancelled next.
                    await watch
            finally:
                watch.cancel()

        return call

    async def _end(
        self, serving: asyncio.Task[Any], context: Context, seconds: float, over: asyncio.Event
    ) -> None:
        await asyncio.sleep(seconds)
        over.set()
        # What is under way arrives once the client reads; the work need not wait for that.
        status = asyncio.create_task(_send(context, _exceeded(seconds)))
        self._sending.add(status)
        status.add_done_callback(self._sending.discard)
        await asyncio.wait((status,), timeout=_SECONDS_TO_SEND)
        serving.cancel()

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
