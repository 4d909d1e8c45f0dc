"""Writes to Redis, beside the answering of requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.records.caching.metrics import PUT_QUEUE_BYTES

MAX_QUEUE_BYTES = 64 * 2**20
_COMMANDS_AT_ONCE = 16
_BYTES_AT_ONCE = 4 * 2**20
_COMMAND_BYTES = 500

Execute = Callable[[Sequence[Sequence[bytes]]], Awaitable[list[Any]]]
"""Sends commands in the form of the wire; gives their replies, None for each where none came."""


@dataclass(frozen=True, slots=True)
class _Write:
    command: Sequence[bytes]
    size: int
    done: Callable[[Any], None]


class WriteQueue:
    """Commands in the order in which they were added, of a bounded size together."""

    def __init__(self, execute: Execute, *, max_bytes: int = MAX_QUEUE_BYTES) -> None:
        self._execute = execute
        self._max_bytes = max_bytes
        self._writes: deque[_Write] = deque()
        self._num_bytes = 0
        self._task: asyncio.Task[None] | None = None

    def add(
        self, command: Sequence[bytes], done: Callable[[Any], None], *, bounded: bool = True
    ) -> bool:
        """Add a command, whose reply `done` will get, None where none came.

        Gives False, and does nothing else, where the queue is full; unless `bounded` is not set,
        as for what is short and must not be left out.
        """
        size = _COMMAND_BYTES + sum(map(len, command))
        if bounded and self._num_bytes + size > self._max_bytes:
            return False
        self._writes.append(_Write(command, size, done))
        self._count(size)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return True

    async def drained(self) -> None:
        """Wait until all that was added is done."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Leave what is not written yet."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        while self._writes:
            write = self._writes.popleft()
            self._count(-write.size)
            write.done(None)

    async def _work(self) -> None:
        try:
            while self._writes:
                taken: list[_Write] = []
                size = 0
                while self._writes and len(taken) < _COMMANDS_AT_ONCE and size < _BYTES_AT_ONCE:
                    write = self._writes.popleft()
                    size += write.size
                    taken.append(write)
                replies: list[Any] = [None] * len(taken)
                try:
                    replies = await self._execute([write.command for write in taken])
                finally:
                    self._count(-size)
                    for write, reply in zip(taken, replies, strict=True):
                        write.done(reply)
        finally:
            self._task = None

    def _count(self, change: int) -> None:
        self._num_bytes += change
        PUT_QUEUE_BYTES.set(self._num_bytes)
