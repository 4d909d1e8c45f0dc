"""Starts child processes together, watches them, and ends them in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from services.launcher.processes import Child, ChildCommand, ChildFailed

DRAIN_SECONDS = 35.0
"""How long a child may take to end; a server lets its running calls go on for 30 seconds."""
ABORT_SECONDS = 3.0
"""How long a child may take to end where the deployment did not start: there are no calls."""

_Result = TypeVar("_Result")


class Supervisor:
    """Children that run together."""

    def __init__(self, order: Sequence[Sequence[str]], *, log: int | None = None) -> None:
        """Take the `order` in which children end: names that end together, group after group.

        `log` is the file descriptor for the children's logs, by default standard error.
        """
        self._order = order
        self._log = log
        self._children: dict[str, Child] = {}
        self.unclean: list[str] = []
        """Names of the children that had to be killed, or ended with an error."""

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name, of all that were started."""
        return {name: child.pid for name, child in self._children.items()}

    async def start(
        self, command: ChildCommand, ready: Callable[[str], Awaitable[None]] | None = None
    ) -> str:
        """Start a child, and wait until it announces its address and `ready(address)` returns.

        Raises:
            ChildFailed: if it can't be started, or ends before.
        """
        child = await Child.start(command, log=self._log)
        self._children[command.name] = child
        address = await child.address()
        if ready is not None:
            await _unless_ended(child, ready(address))
        return address

    async def failure(self) -> ChildFailed:
        """Wait until a child ends, which none should, and give how it did."""
        waiting = [asyncio.create_task(child.ended()) for child in self._children.values()]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in waiting:
                task.cancel()

    async def drain(self) -> None:
        """End all children in order, and let running calls end, whatever happens meanwhile.

        Cancelled while it waits, it ends at once what is left.
        """
        await self._whatever_happens(self._stop(self._order, DRAIN_SECONDS))

    async def abort(self) -> None:
        """End all children, soon."""
        await self._whatever_happens(self._stop([list(self._children)], ABORT_SECONDS))

    async def _whatever_happens(self, stopping: Coroutine[None, None, None]) -> None:
        ending = asyncio.ensure_future(stopping)
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                for child in self._children.values():
                    child.kill()
        ending.result()

    async def _stop(self, order: Sequence[Sequence[str]], seconds: float) -> None:
        for group in order:
            children = [self._children[name] for name in group if name in self._children]
            clean = await asyncio.gather(*(child.stop(seconds) for child in children))
            for child, ended_cleanly in zip(children, clean, strict=True):
                if not ended_cleanly:
                    self.unclean.append(child.name)


@asynccontextmanager
async def supervised(
    order: Sequence[Sequence[str]],
    start: Callable[[Supervisor], Awaitable[None]],
    *,
    log: int | None = None,
) -> AsyncIterator[Supervisor]:
    """Run `start`, which starts children; whatever happens, none is left after the block.

    Raises:
        ChildFailed: if a child does not start.
    """
    supervisor = Supervisor(order, log=log)
    try:
        await start(supervisor)
    except BaseException:
        await supervisor.abort()
        raise
    try:
        yield supervisor
    finally:
        await supervisor.drain()


async def unless_a_service_ends(
    supervisor: Supervisor, work: Coroutine[Any, Any, _Result]
) -> _Result:
    """What the work gives.

    Raises:
        ChildFailed: if a child ends before.
    """
    job = asyncio.create_task(work)
    ended = asyncio.create_task(supervisor.failure())
    try:
        await asyncio.wait({job, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise ended.result()
        return job.result()
    finally:
        job.cancel()
        ended.cancel()


async def _unless_ended(child: Child, work: Awaitable[None]) -> None:
    working = asyncio.ensure_future(work)
    ended = asyncio.create_task(child.ended())
    try:
        either: list[asyncio.Future[Any]] = [working, ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ended.result()
        working.result()
    finally:
        working.cancel()
        ended.cancel()
