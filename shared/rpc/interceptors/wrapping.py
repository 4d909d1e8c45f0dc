"""How interceptors surround the methods of a servicer.

They are composed once, when a server is built. grpc.aio's own server interceptors make a new
handler for every call at every interceptor, which costs more than a small call itself; a generator
as context manager, or one around every response of a stream, costs as much as the rest of what it
does. So a streaming method is made a coroutine that writes its responses, and surrounded as a unary
method is.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc.aio

Context = grpc.aio.ServicerContext[Any, Any]
Behavior = Callable[[Any, Context], Awaitable[Any]]
"""A method: gives its response, or writes its responses and gives None."""
Stream = Callable[[Any, Context], AsyncGenerator[Any, None]]

_CANCELLED_WITHIN_SECONDS = 0.5


class Interceptor(ABC):
    """Does something before and after every call, whatever its kind."""

    @abstractmethod
    def unary(self, method: str, behavior: Behavior) -> Behavior:
        """The method with this interceptor around it; `method` is ``package.Service/Method``."""

    def stream(self, method: str, behavior: Behavior) -> Behavior:
        """The same for a method that writes its responses."""
        return self.unary(method, behavior)


def surround_unary(
    method: str, behavior: Behavior, interceptors: Sequence[Interceptor]
) -> Behavior:
    """The method with all interceptors around it, the first outermost."""
    for interceptor in reversed(interceptors):
        behavior = interceptor.unary(method, behavior)
    return behavior


def surround_stream(method: str, behavior: Stream, interceptors: Sequence[Interceptor]) -> Behavior:
    """The streaming method, writing its responses, with all interceptors around it."""
    surrounded = _writing(behavior)
    for interceptor in reversed(interceptors):
        surrounded = interceptor.stream(method, surrounded)
    return surrounded


def _writing(behavior: Stream) -> Behavior:
    async def call(request: Any, context: Context) -> None:
        # Closed here and not when it is collected: a caller that goes ends the work at once.
        async with aclosing(behavior(request, context)) as responses:
            async for response in responses:
                try:
                    await context.write(response)
                except grpc.aio.InternalError:
                    # So does a write fail whose caller has gone, which cancels the call a moment
                    # later. Nothing tells it before from a response that can't be sent.
                    await asyncio.sleep(_CANCELLED_WITHIN_SECONDS)
                    raise

    return call
