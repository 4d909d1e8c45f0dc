"""Blobs of Azure and Google storage, through blobfile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import chain
from typing import TypeVar, cast
from urllib.parse import quote

import blobfile
import structlog
from blobfile import _common

from services.records.storage import conditional
from services.records.storage.failures import (
    STORE_FAILURES,
    failure,
    not_writable,
    status_of,
    too_large,
)
from services.records.storage.folders import Folder
from services.records.storage.names import Entry
from services.records.storage.transport import (
    AZURE_DOMAIN,
    GCS_HOST,
    BlobTooLarge,
    Transport,
)

# No such blob, container or bucket.
_MISSING = 404
_LONGEST_NAME = 1024
_DENIED_SECONDS = 1.0
_WILDCARDS = frozenset("*?[]")

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """The content of a blob and what its store calls this state of it."""

    content: bytes
    version: str


class RemoteStore:
    """Reads, lists and replaces blobs; blocks, and works for the operation of its thread.

    A missing blob or folder is None. Raises what `failures.failure` makes of all else that goes
    wrong, and ResourceExhausted where a blob has more bytes than the transport, or the thread's
    operation, lets through.
    """

    def __init__(self, transport: Transport, *, retries: int) -> None:
        self._max_bytes = transport.max_blob_bytes
        context: Callable[..., blobfile.Context] = partial(
            blobfile.create_context,
            # What failed is told once, by `failure`; blobfile would log URLs.
            log_callback=lambda message: _log.debug("blob_store_retry"),
            get_http_pool=lambda: transport,
            save_access_token_to_disk=False,
        )
        self._context = context(retry_limit=retries)
        # A write that failed may have happened: only its author can tell whether to repeat it.
        self._once = context(retry_limit=0)
        self._reached: set[str] = set()
        self._denied: dict[str, float] = {}
        self._lock = threading.Lock()

    def read(self, folder: Folder, relative: str) -> bytes | None:
        """The content of a blob."""
        return self._told(folder.file_name(relative), "read", self._read, folder, relative)

    def read_version(self, folder: Folder, relative: str) -> Version | None:
        """The content of a blob with a version that is not newer than the content."""
        name = folder.file_name(relative)

        def read(path: str) -> Version | None:
            version = self._context.stat(path).version or ""
            return Version(self._read(path), version)

        return self._told(name, "read", read, folder, relative)

    def replace(self, folder: Folder, relative: str, content: bytes, version: str | None) -> bool:
        """Store a blob if its version is still the one given; None: if there is no such blob.

        False where it is not. FailedPrecondition where there is no such container or bucket.
        """
        if _is_too_long(_path(folder, relative)):
            raise not_writable(folder.name, "its name is longer than a blob's can be")
        put = partial(conditional.put, self._once, content=content, version=version)
        stored = self._told(folder.file_name(relative), "written", put, folder, relative)
        if stored is None:
            raise not_writable(folder.name, "there is no such container or bucket")
        return stored

    def listed(
        self, folder: Folder, relative: str, collect: Callable[[Iterator[Entry]], _Result]
    ) -> _Result | None:
        """What `collect` makes of the entries at `relative`; None where there is nothing."""

        def work(path: str) -> _Result | None:
            if _WILDCARDS & set(path):
                entries = iter(self._context.scandir(path))
            else:
                # A request a page, where scandir first asks four times whether there is anything.
                entries = self._context.scanglob(f"{path}/*")
            first = next(entries, None)
            return None if first is None else collect(map(_entry, chain((first,), entries)))

        return self._told(folder.file_name(relative), "listed", work, folder, relative)

    def _read(self, path: str) -> bytes:
        # One request for as much as may be read: a size that is given need not be asked for, the
        # range may end behind the blob, and the transport refuses what is larger before it comes.
        most = self._max_bytes + 1
        with self._context.BlobFile(path, "rb", buffer_size=1, file_size=most) as file:
            return cast("BufferedReader", file).read1(most)

    def _told(
        self,
        name: str,
        doing: str,
        work: Callable[[str], _Result | None],
        folder: Folder,
        relative: str,
    ) -> _Result | None:
        path = _path(folder, relative)
        if _is_too_long(path):
            return None
        try:
            self._reach(path)
            return work(path)
        except FileNotFoundError:
            return None
        except BlobTooLarge as error:
            raise too_large(name, error.size, error.limit) from error
        except STORE_FAILURES as error:
            if type(error) is blobfile.Error and not self._denied_lately(path):
                self._denied[_container(path)] = time.monotonic() + _DENIED_SECONDS
            if status_of(error) == _MISSING:
                return None
            raise failure(name, error, doing) from error

    def _denied_lately(self, path: str) -> bool:
        return self._denied.get(_container(path), 0.0) > time.monotonic()

    def _reach(self, path: str) -> None:
        """Ask the account anything, before blobfile asks for a right to its container.

        blobfile does that under a lock, which all accounts of the process share: one that hangs
        would stop the others. So would one without access, which is asked anew each time.
        """
        if self._denied_lately(path):
            raise blobfile.Error("no access a moment ago")
        key = _container(path)
        if key == GCS_HOST or key in self._reached:
            return
        ask = _common.Request("HEAD", f"https://{quote(key)}", success_codes=range(200, 500))
        _common.execute_request(self._context._conf, lambda: ask)
        with self._lock:
            self._reached.add(key)


def _entry(found: blobfile.DirEntry) -> Entry:
    if found.is_dir or found.stat is None:
        return Entry(found.name, found.is_dir)
    state = found.stat
    return Entry(found.name, False, f"{state.size} {state.mtime} {state.version}")


def _container(path: str) -> str:
    """What is granted as a whole: a container of Azure's, or all of Google."""
    host = host_of(path)
    return f"{host}/{path.split('/')[3]}" if host.endswith(AZURE_DOMAIN) else host


def _path(folder: Folder, relative: str) -> str:
    return f"{folder.path.rstrip('/')}/{relative}".rstrip("/")


def _is_too_long(path: str) -> bool:
    """Whether no blob can be called so: stores answer nonsense then."""
    google = host_of(path) == GCS_HOST
    name = path.split("/", 3 if google else 4)[-1]
    # Google counts bytes and Azure characters.
    return len(name.encode(errors="replace") if google else name) > _LONGEST_NAME


def host_of(path: str) -> str:
    """The host that answers for a path: what can fail as a whole."""
    scheme, _, rest = path.partition("://")
    name = rest.partition("/")[0]
    if scheme.lower() == "gs":
        return GCS_HOST
    return name.lower() if scheme.lower() == "https" else f"{name}{AZURE_DOMAIN}"
