"""When a process is to end: on a signal, or with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def stopping(stop: Callable[[], None], *, end_with_parent: bool) -> AsyncIterator[None]:
    """Call `stop` on SIGTERM and SIGINT while the block runs.

    With `end_with_parent` also when standard input closes, as it does when the parent process dies
    by whatever means, if that process holds the other end of a pipe.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    watcher = asyncio.create_task(_watch_parent(stop)) if end_with_parent else None
    try:
        yield
    finally:
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher


async def _watch_parent(stop: Callable[[], None]) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.read(4096):
        pass
    stop()
