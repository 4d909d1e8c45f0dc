"""How interceptors surround the methods of a servicer.

They are composed once, when a server is built. grpc.aio's own server interceptors make a new
handler for every call at every interceptor, which costs more than a small call itself; a generator
as context manager costs as much as the rest of what it does, so unary calls have none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any

import grpc.aio

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Context], Awaitable[Any]]
Stream = Callable[[Any, Context], AsyncGenerator[Any, None]]


class Interceptor(ABC):
    """Does something before and after every call, whatever its kind."""

    @abstractmethod
    def around(
        self, method: str, request: Any, context: Context
    ) -> AbstractAsyncContextManager[None]:
        """What surrounds a call; `method` is ``package.Service/Method``."""

    def unary(self, method: str, behavior: Unary) -> Unary:
        """The method with this interceptor around it.

        For short calls: one that needs no context manager says what it does here as well.
        """
        return partial(_unary, self, method, behavior)

    async def stream(
        self, method: str, behavior: Stream, request: Any, context: Context
    ) -> AsyncGenerator[Any, None]:
        """The responses of a streaming call, surrounded as any other call is."""
        # Closed here and not when it is collected: a caller that goes ends the work at once.
        async with (
            self.around(method, request, context),
            aclosing(behavior(request, context)) as responses,
        ):
            async for response in responses:
                yield response


def surround_unary(method: str, behavior: Unary, interceptors: Sequence[Interceptor]) -> Unary:
    """The method with all interceptors around it, the first outermost."""
    for interceptor in reversed(interceptors):
        behavior = interceptor.unary(method, behavior)
    return behavior


def surround_stream(method: str, behavior: Stream, interceptors: Sequence[Interceptor]) -> Stream:
    """The streaming method with all interceptors around it, the first outermost."""
    for interceptor in reversed(interceptors):
        behavior = partial(interceptor.stream, method, behavior)
    return behavior


async def _unary(
    interceptor: Interceptor, method: str, behavior: Unary, request: Any, context: Context
) -> Any:
    async with interceptor.around(method, request, context):
        return await behavior(request, context)
