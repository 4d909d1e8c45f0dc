"""Reading files of datasets, local or on a blob store, without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import blobfile
import structlog
import urllib3

from services.records.datasets import PATH_NOT_ALLOWED
from services.records.storage.folders import Folder, is_within
from shared.errors import InvalidArgument, ResourceExhausted, Unavailable
from shared.formats.decoding import corrupt

MAX_FILE_BYTES = 64 * 2**20
NUM_THREADS = 32

_MISSING = (errno.ENOENT, errno.ENOTDIR)

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


class FileStore:
    """Reads whole files and lists folders, of the file system and of blob stores.

    Missing files are None and missing folders empty. Other failures are errors that name the file
    as its folder does: DataLoss where it is no file, ResourceExhausted where it has more than
    `max_bytes`, InvalidArgument where a link leads out of the folder's root, and Unavailable where
    the storage does not answer or refuses.
    """

    def __init__(
        self,
        *,
        max_bytes: int = MAX_FILE_BYTES,
        http_pool: Callable[[], urllib3.PoolManager] | None = None,
    ) -> None:
        """`http_pool` makes the connections to blob stores where they are not the usual ones."""
        self._max_bytes = max_bytes
        self._http_pool = http_pool

    def read(self, folder: Folder, relative: str) -> bytes | None:
        """The content of the file at `relative` in the folder."""
        if folder.remote:
            return self._read_remote(folder, relative)
        return self._read_local(folder, relative)

    def folders(self, folder: Folder, relative: str = "") -> list[str]:
        """Names of the folders at `relative` in the folder, in no particular order."""
        try:
            return self._entries(folder, relative, folders=True)
        except FileNotFoundError:
            return []

    def files(self, folder: Folder, relative: str = "") -> list[str] | None:
        """Names of the files at `relative` in the folder; None where there is no such folder."""
        try:
            return self._entries(folder, relative, folders=False)
        except FileNotFoundError:
            return None

    def versions(self, folder: Folder, relative: str = "") -> dict[str, str]:
        """What tells states of each file at `relative` apart, by name; none without a folder."""
        try:
            if folder.remote:
                path = f"{folder.path.rstrip('/')}/{relative}".rstrip("/")
                return {
                    entry.name: f"{entry.stat.size} {entry.stat.mtime} {entry.stat.version}"
                    for entry in self._remote.scandir(path)
                    if entry.is_file and entry.stat is not None
                }
            versions = {}
            with os.scandir(local_path(folder, relative)) as entries:
                for entry in entries:
                    # A file may be gone by now, as those that writers rename are.
                    with contextlib.suppress(FileNotFoundError):
                        state = entry.stat()
                        if stat.S_ISREG(state.st_mode):
                            versions[entry.name] = (
                                f"{state.st_size} {state.st_mtime_ns} {state.st_ino}"
                            )
            return versions
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (blobfile.Error, OSError) as error:
            raise _unavailable(folder.file_name(relative), error) from error

    @cached_property
    def _remote(self) -> blobfile.Context:
        # By default blobfile retries for ever and keeps access tokens on disk.
        context: blobfile.Context = blobfile.create_context(
            log_callback=lambda message: _log.warning("blob_storage", detail=message),
            connection_pool_max_size=NUM_THREADS,
            retry_limit=3,
            connect_timeout=5,
            read_timeout=15,
            save_access_token_to_disk=False,
            get_http_pool=self._http_pool,
        )
        return context

    def _read_local(self, folder: Folder, relative: str) -> bytes | None:
        name = folder.file_name(relative)
        try:
            path = local_path(folder, relative)
            # Without O_NONBLOCK opening a pipe would wait for its writer.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _MISSING:
                return None
            if error.errno == errno.ELOOP:
                raise corrupt(name, "is a link in a circle") from error
            raise _unavailable(name, error) from error
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise corrupt(name, "is no file")
            self._check_size(name, status.st_size)
            with os.fdopen(handle, "rb", closefd=False) as file:
                return file.read(self._max_bytes + 1)
        except OSError as error:
            raise _unavailable(name, error) from error
        finally:
            os.close(handle)

    def _read_remote(self, folder: Folder, relative: str) -> bytes | None:
        name, path = folder.file_name(relative), f"{folder.path.rstrip('/')}/{relative}"
        try:
            size = self._remote.stat(path).size
            self._check_size(name, size)
            with self._remote.BlobFile(path, "rb", file_size=size) as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None
        except IsADirectoryError as error:
            raise corrupt(name, "is no file") from error
        except (blobfile.Error, OSError) as error:
            raise _unavailable(name, error) from error

    def _check_size(self, name: str, size: int) -> None:
        if size > self._max_bytes:
            raise ResourceExhausted(
                f"{name} has {size} bytes; at most {self._max_bytes} are read.",
                reason="FILE_TOO_LARGE",
                metadata={"file": name, "bytes": str(size), "limit": str(self._max_bytes)},
            )

    def _entries(self, folder: Folder, relative: str, folders: bool) -> list[str]:
        """Names of folders or files; FileNotFoundError where there is no such folder."""
        try:
            if folder.remote:
                path = f"{folder.path.rstrip('/')}/{relative}".rstrip("/")
                found = self._remote.scandir(path)
                return [entry.name for entry in found if entry.is_dir == folders]
            with os.scandir(local_path(folder, relative)) as entries:
                return [entry.name for entry in entries if entry.is_dir() == folders]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(relative) from error
        except (blobfile.Error, OSError) as error:
            raise _unavailable(folder.file_name(relative), error) from error


class Blobs:
    """A file store on a bounded pool of threads, for the event loop."""

    def __init__(self, *, max_bytes: int = MAX_FILE_BYTES, threads: int = NUM_THREADS) -> None:
        self._store = FileStore(max_bytes=max_bytes)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="blobs")
        self._making = threading.Lock()

    async def read(self, folder: Folder, relative: str) -> bytes | None:
        """As `FileStore.read`."""
        return await self._run(self._store.read, folder, relative)

    async def load(
        self, folder: Folder, relative: str, make: Callable[[bytes], _Result]
    ) -> _Result | None:
        """What `make` makes of a file's content, in the thread that read it; None as `read`."""
        return await self._run(self._load, folder, relative, make)

    async def folders(self, folder: Folder, relative: str = "") -> list[str]:
        """As `FileStore.folders`."""
        return await self._run(self._store.folders, folder, relative)

    async def files(self, folder: Folder, relative: str = "") -> list[str] | None:
        """As `FileStore.files`."""
        return await self._run(self._store.files, folder, relative)

    async def versions(self, folder: Folder, relative: str = "") -> dict[str, str]:
        """As `FileStore.versions`."""
        return await self._run(self._store.versions, folder, relative)

    def close(self) -> None:
        """End the threads; reads under way are finished."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _load(
        self, folder: Folder, relative: str, make: Callable[[bytes], _Result]
    ) -> _Result | None:
        data = self._store.read(folder, relative)
        if data is None:
            return None
        # Making holds the interpreter's lock: several at once would only wait for one another and
        # keep the event loop waiting.
        with self._making:
            return make(data)

    async def _run(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def local_path(folder: Folder, relative: str) -> str:
    """The real path of a local file; InvalidArgument where it is not within the folder's root."""
    path = os.path.realpath(os.path.join(folder.path, relative))
    if not is_within(path, os.path.realpath(folder.root)):
        raise InvalidArgument(
            f"{folder.file_name(relative)} may not be read: it is a link out of its dataset.",
            reason=PATH_NOT_ALLOWED,
        )
    return path


def _unavailable(name: str, error: Exception) -> Unavailable:
    # Only the system's own words are passed on: other texts hold paths, URLs and headers.
    cause = error.strerror if isinstance(error, OSError) else None
    _log.warning("storage_unavailable", file=name, error=str(error))
    return Unavailable(
        f"{name} can't be read now: {cause or 'the blob store failed'}.",
        reason="STORAGE_UNAVAILABLE",
        metadata={"file": name},
    )
