"""Runs many calls at the same time and gives their results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

ResultT = TypeVar("ResultT")


async def in_order(
    calls: Iterable[Callable[[], Awaitable[ResultT]]], ahead: int
) -> AsyncGenerator[ResultT, None]:
    """The results in the order of the calls, of which `ahead` are under way at most.

    Leaving the iteration, and the first failure, cancel all that are under way.
    """
    running: deque[asyncio.Task[ResultT]] = deque()
    waiting = iter(calls)
    try:
        while True:
            while len(running) < ahead and (call := next(waiting, None)) is not None:
                running.append(asyncio.create_task(_awaited(call)))
            if not running:
                return
            result = await running[0]
            running.popleft()
            yield result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _awaited(call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    return await call()
