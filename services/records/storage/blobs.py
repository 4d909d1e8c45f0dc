"""Files of datasets, local or on a blob store, without blocking the event loop."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from traceback import clear_frames
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from cachetools import TTLCache

from services.records.storage.failures import FILE_TOO_LARGE, failure, write_conflict
from services.records.storage.file_store import MAX_ENTRIES, MAX_FILE_BYTES, FileStore
from services.records.storage.folders import Folder
from services.records.storage.operation import GivenUp, Operation, current
from services.records.storage.remote import host_of
from services.records.storage.transport import LeftAlone
from shared.errors import NeuropilError, ResourceExhausted, Unavailable
from shared.settings import Storage

NUM_THREADS = 32

LARGE_FILE_BYTES = 4 * 2**20
"""Larger files take turns, those of a store with one another: one is in memory at a time."""

LISTING_SECONDS = 10.0
"""How long the listing of a folder is kept."""

STALE_SECONDS = 600.0
"""How long the folders of a blob store are remembered for when it can't be asked."""

# All listings that are kept together, in entries of eight bytes.
_KEPT_ENTRIES = 4 * MAX_ENTRIES
# What a key takes, which there is for a missing folder too.
_KEY_ENTRIES = 64
# Writers wait for one another: they are kept apart from readers, and few.
_WRITE_THREADS = 4

_Result = TypeVar("_Result")
_Content = TypeVar("_Content")

_NOT_KEPT = array("q")


class Blobs:
    """A file store on bounded pools of threads, for the event loop.

    Local files have `threads`, every blob store has its own: one that hangs holds up nobody else. A
    caller who gives up, and the time that the configuration allows, end what a store is asked.

    What files are made into is made one at a time, as it holds the interpreter's lock: several at
    once would only wait for one another and keep the event loop waiting. Files of more than
    `LARGE_FILE_BYTES` have a thread and a turn of their own: small ones don't wait for them.
    """

    def __init__(
        self,
        storage: Storage | None = None,
        *,
        max_bytes: int = MAX_FILE_BYTES,
        threads: int = NUM_THREADS,
    ) -> None:
        settings = storage or Storage()
        self.store = FileStore(settings, max_bytes=max_bytes)
        self._seconds = settings.timeout_seconds
        self._threads = threads
        self._threads_per_store = settings.requests_per_store
        self._making = {large: threading.Lock() for large in (False, True)}
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._under_way: set[Operation] = set()
        self._listings: TTLCache[tuple[str, ...], array[int] | None] = TTLCache(
            _KEPT_ENTRIES,
            LISTING_SECONDS,
            getsizeof=lambda listing: len(listing or ()) + _KEY_ENTRIES,
        )
        self._folders: TTLCache[tuple[str, ...], tuple[float, list[str]]] = TTLCache(
            _KEPT_ENTRIES, STALE_SECONDS, getsizeof=lambda known: len(known[1]) + _KEY_ENTRIES
        )
        self._listing: dict[tuple[str, ...], asyncio.Task[array[int] | None]] = {}
        # How many files were written: what was listed meanwhile may lack them.
        self._changes = 0
        self._writing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def read(self, folder: Folder, relative: str) -> bytes | None:
        """As `FileStore.read`."""
        return await self.load(folder, relative, lambda content: content)

    async def load(
        self, folder: Folder, relative: str, make: Callable[[bytes], _Result]
    ) -> _Result | None:
        """What `make` makes of a file's content, in the thread that read it; None as `read`."""

        def load(large: bool, folder: Folder, relative: str) -> _Result | None:
            content = self.store.read(folder, relative, max_bytes=self._limit(large))
            if content is None:
                return None
            if (operation := current()) is not None:
                # What else takes time is no failure of the store.
                operation.answered()
            return self._made(make, large, content)

        return await self._by_size(
            lambda large: self._run("read", partial(load, large), folder, relative, large=large)
        )

    async def folders(self, folder: Folder, relative: str = "") -> list[str]:
        """As `FileStore.folders`; of a blob store as it was in the last `LISTING_SECONDS`.

        A store that can't be asked now is taken to have what it had, for `STALE_SECONDS`.
        """
        if not folder.remote:
            return await self._run("listed", self.store.folders, folder, relative)
        key = (folder.path, relative)
        known = self._folders.get(key)
        now, changes = asyncio.get_running_loop().time(), self._changes
        if known is not None and now - known[0] < LISTING_SECONDS:
            return known[1]
        try:
            found = await self._run("listed", self.store.folders, folder, relative)
        except Unavailable:
            if known is None:
                raise
            return known[1]
        if changes == self._changes:
            self._folders[key] = (now, found)
        return found

    async def files(self, folder: Folder, relative: str = "") -> list[str] | None:
        """As `FileStore.files`."""
        return await self._run("listed", self.store.files, folder, relative)

    async def versions(self, folder: Folder, relative: str = "") -> dict[str, str]:
        """As `FileStore.versions`."""
        return await self._run("listed", self.store.versions, folder, relative)

    async def indices(self, folder: Folder, relative: str, suffix: str) -> array[int] | None:
        """As `FileStore.indices`, as it is now or was in the last `LISTING_SECONDS`."""
        key = (folder.path, folder.root, relative, suffix)
        # One look: between two an entry may grow old.
        kept = self._listings.get(key, _NOT_KEPT)
        if kept is not _NOT_KEPT:
            return kept
        task = self._listing.get(key)
        if task is None:
            task = asyncio.create_task(self._list(key, folder, relative, suffix))
            self._listing[key] = task
            task.add_done_callback(partial(self._listed, key))
        return await asyncio.shield(task)

    async def update(
        self, folder: Folder, relative: str, change: Callable[[bytes | None], bytes]
    ) -> None:
        """As `FileStore.update`; writers of the same file take turns here already.

        Both together take the time of one operation. A local file's disk is waited for longer.
        """
        path = f"{folder.path.rstrip('/')}/{relative}"
        lock = self._writing.setdefault(path, asyncio.Lock())
        end = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(end):
                await lock.acquire()
        except TimeoutError as error:
            raise write_conflict(folder.file_name(relative)) from error
        try:

            async def store(large: bool) -> None:
                left = max(0.0, end - asyncio.get_running_loop().time())
                work = partial(self.store.update, seconds=left, max_bytes=self._limit(large))
                changed = partial(self._made, change, large)
                await self._run(
                    "written", work, folder, relative, changed, seconds=left, large=large
                )

            await self._by_size(store)
        finally:
            lock.release()
            # A write that failed may have happened.
            self._forget_listings(path)

    def close(self) -> None:
        """End the threads: what local files are read or written for is finished."""
        for operation in tuple(self._under_way):
            operation.give_up()
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    def _forget_listings(self, path: str) -> None:
        self._changes += 1
        kept: tuple[MutableMapping[tuple[str, ...], Any], ...]
        kept = (self._listings, self._folders, self._listing)
        for listings in kept:
            for key in [key for key in listings if path.startswith(key[0])]:
                listings.pop(key, None)

    def _listed(self, key: tuple[str, ...], task: asyncio.Task[array[int] | None]) -> None:
        if self._listing.get(key) is task:
            del self._listing[key]
        if not task.cancelled():
            # All who waited may have gone.
            task.exception()

    async def _by_size(self, run: Callable[[bool], Awaitable[_Result]]) -> _Result:
        """What `run` does of a file as a small one; where it is none, of a large one."""

        async def tried(large: bool) -> _Result:
            try:
                return await run(large)
            except NeuropilError as error:
                _drop_locals(error)
                raise

        try:
            return await tried(False)
        except ResourceExhausted as error:
            small, limit = self._limit(False), error.metadata.get("limit")
            if error.reason != FILE_TOO_LARGE or limit != str(small) or small == self._limit(True):
                raise
        return await tried(True)

    def _limit(self, large: bool) -> int:
        most = self.store.max_bytes
        return most if large else min(LARGE_FILE_BYTES, most)

    def _made(self, make: Callable[[_Content], _Result], large: bool, content: _Content) -> _Result:
        with self._making[large]:
            return make(content)

    async def _list(
        self, key: tuple[str, ...], folder: Folder, relative: str, suffix: str
    ) -> array[int] | None:
        changes = self._changes
        found = await self._run("listed", self.store.indices, folder, relative, suffix)
        if changes == self._changes:
            self._listings[key] = found
        return found

    async def _run(
        self,
        doing: str,
        work: Callable[..., _Result],
        folder: Folder,
        relative: str,
        *arguments: Any,
        seconds: float | None = None,
        large: bool = False,
    ) -> _Result:
        loop = asyncio.get_running_loop()
        writes = doing == "written"
        lane = f"{' write' if writes else ''}{' large' if large else ''}"
        most = 1 if large else _WRITE_THREADS if writes else None
        if not folder.remote:
            pool = self._pool(f"local{lane}", most or self._threads)
            return await loop.run_in_executor(pool, work, folder, relative, *arguments)
        host, name = host_of(folder.path), folder.file_name(relative)
        if not self.store.transport.circuit(host).admits():
            raise failure(name, LeftAlone(host), doing)
        pool = self._pool(f"{host}{lane}", most or self._threads_per_store)
        seconds = self._seconds if seconds is None else seconds
        time_limit = asyncio.timeout(seconds)
        operation = Operation(
            seconds,
            self._limit(large),
            lambda: loop.call_soon_threadsafe(_lift, time_limit),
        )

        def run() -> _Result:
            with operation.entered():
                return work(folder, relative, *arguments)

        self._under_way.add(operation)
        try:
            async with time_limit:
                return await loop.run_in_executor(pool, run)
        except TimeoutError as error:
            raise failure(name, GivenUp(), doing) from error
        finally:
            # A thread that still works for it is to stop: nobody waits for it.
            operation.give_up()
            self._under_way.discard(operation)

    def _pool(self, name: str, threads: int) -> ThreadPoolExecutor:
        if name not in self._pools:
            self._pools[name] = ThreadPoolExecutor(threads, thread_name_prefix=f"blobs {name}")
        return self._pools[name]


def _drop_locals(error: BaseException | None) -> None:
    """Else who keeps an error would keep the content in its frames, and what that was parsed to."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__context__


def _lift(limit: asyncio.Timeout) -> None:
    # It may be over by now.
    with suppress(RuntimeError):
        limit.reschedule(None)
