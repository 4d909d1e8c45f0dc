"""Work that is finished although its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_Result = TypeVar("_Result")


async def finished(work: Awaitable[_Result]) -> _Result:
    """Await work to its end, however often the caller is cancelled meanwhile.

    A call is cancelled more than once: when its client goes, and when its deadline passes.

    Raises:
        asyncio.CancelledError: after the end of the work, where the caller was cancelled.
        Exception: what the work raises.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            # Looked at, so that it isn't logged as one that nobody saw.
            task.exception()
        raise cancelled
    return task.result()
