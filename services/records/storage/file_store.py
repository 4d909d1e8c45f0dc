"""Files of datasets, local or on a blob store, as one store that blocks."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import TypeVar

from services.records.storage import local
from services.records.storage.folders import Folder
from services.records.storage.names import Entry, ascending
from services.records.storage.remote import RemoteStore
from services.records.storage.transport import Endpoints, Timeouts, Transport
from services.records.storage.updating import update_blob
from shared.errors import ResourceExhausted
from shared.settings import Storage

MAX_FILE_BYTES = 64 * 2**20

MAX_ENTRIES = 1_000_000
"""Most entries of one folder that are listed."""

_Result = TypeVar("_Result")


class FileStore:
    """Reads, lists and replaces files of the file system and of blob stores; blocks.

    Missing files are None and missing folders empty. Other failures are errors that name the file
    as its folder does: DataLoss where it is no file, ResourceExhausted where it has more than
    `max_bytes`, InvalidArgument where a link leads out of the folder's root, FailedPrecondition
    where no access is granted, and Unavailable where the storage does not answer or refuses.
    """

    def __init__(self, storage: Storage | None = None, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        settings = storage or Storage()
        self.max_bytes = max_bytes
        self.transport = Transport(
            Endpoints(settings.azure_endpoint, settings.gcs_endpoint),
            Timeouts(
                settings.connect_timeout_seconds,
                settings.read_timeout_seconds,
                settings.timeout_seconds,
            ),
            connections=settings.requests_per_store,
            max_blob_bytes=max_bytes,
        )
        self._remote = RemoteStore(self.transport, retries=settings.retries)

    def read(self, folder: Folder, relative: str, *, max_bytes: int | None = None) -> bytes | None:
        """The content of the file at `relative` in the folder.

        `max_bytes` may be less for once; of a blob, its thread's operation says so.
        """
        if folder.remote:
            return self._remote.read(folder, relative)
        return local.read(folder, relative, max_bytes or self.max_bytes)

    def folders(self, folder: Folder, relative: str = "") -> list[str]:
        """Names of the folders at `relative` in the folder, in no particular order."""

        def names(entries: Iterator[Entry]) -> list[str]:
            return [entry.name for entry in entries if entry.is_folder]

        return self._listed(folder, relative, names) or []

    def files(self, folder: Folder, relative: str = "") -> list[str] | None:
        """Names of the files at `relative` in the folder; None where there is no such folder."""
        return self._listed(folder, relative, lambda entries: list(_files(entries)))

    def versions(self, folder: Folder, relative: str = "") -> dict[str, str]:
        """What tells states of each file at `relative` apart, by name; none without a folder."""

        def states(entries: Iterator[Entry]) -> dict[str, str]:
            return {entry.name: entry.state for entry in entries if entry.state}

        return self._listed(folder, relative, states, states=True) or {}

    def indices(self, folder: Folder, relative: str, suffix: str) -> array[int] | None:
        """Numbers that files are called before `suffix`, ascending; None where there is no folder.

        Other files are passed over.
        """

        def numbers(entries: Iterator[Entry]) -> array[int]:
            return array("q", ascending(_files(entries), suffix))

        return self._listed(folder, relative, numbers)

    def update(
        self,
        folder: Folder,
        relative: str,
        change: Callable[[bytes | None], bytes],
        *,
        seconds: float,
        max_bytes: int | None = None,
    ) -> None:
        """Replace a file by what `change` makes of its content, None where there is none.

        `max_bytes` is as for `read`. `change` is called again where another writer was faster, so
        that neither's work is lost. Raises what it raises, FailedPrecondition where nothing can be
        written, and Unavailable where other writers are faster for `seconds`.
        """
        if folder.remote:
            update_blob(self._remote, folder, relative, change, seconds=seconds)
        else:
            limit = max_bytes or self.max_bytes
            local.update(folder, relative, change, seconds=seconds, max_bytes=limit)

    def _listed(
        self,
        folder: Folder,
        relative: str,
        collect: Callable[[Iterator[Entry]], _Result],
        *,
        states: bool = False,
    ) -> _Result | None:
        def bounded(entries: Iterator[Entry]) -> _Result:
            return collect(_at_most(MAX_ENTRIES, entries, folder.file_name(relative)))

        if folder.remote:
            return self._remote.listed(folder, relative, bounded)
        return local.listed(folder, relative, bounded, states=states)


def _files(entries: Iterator[Entry]) -> Iterator[str]:
    return (entry.name for entry in entries if not entry.is_folder)


def _at_most(limit: int, entries: Iterator[Entry], name: str) -> Iterator[Entry]:
    for position, entry in enumerate(entries):
        if position == limit:
            raise ResourceExhausted(
                f"{name} has more than {limit} entries; no more are listed.",
                reason="FOLDER_TOO_LARGE",
                metadata={"limit": str(limit)},
            )
        yield entry
