"""Finds what is new, changed and gone among the explanation files of all datasets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from services.records import explanations
from services.records.components import Component
from services.records.search.documents import FileKey, Text, texts_of
from services.records.search.index import ExplanationIndex
from services.records.search.metrics import SCAN_TIMESTAMP, UNREADABLE_FILES
from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder
from services.records.storage.names import ascending
from shared.errors import DataLoss, InvalidArgument, NeuropilError, ResourceExhausted
from shared.settings import Dataset

_READS_AT_ONCE = 4
_COMMIT_FILES = 1000
_READABLE_LATER = ""
_SUFFIX = ".jsonl"

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


@dataclass
class Sources:
    """The explanation folders of a dataset, in the order in which answers name them."""

    folders: list[Folder] = field(default_factory=list)
    read_through: bool = False
    """Whether all of them were read through since the service started."""


class Scanner:
    """Brings the index up to what the storage holds.

    It reads few files at once and rests as long as it worked, so that reads don't suffer from it.
    """

    def __init__(
        self, index: ExplanationIndex, blobs: Blobs, datasets: Sequence[Dataset], executor: Executor
    ) -> None:
        """`executor` is the one thread that changes the index."""
        self._index = index
        self._blobs = blobs
        self._executor = executor
        self._datasets = datasets
        self._sources = [
            Sources([Folder.trusted(path) for path in dataset.explanation_dataset_paths])
            for dataset in datasets
        ]
        self._changed: dict[tuple[str, Component], Folder] = {}
        self._changed_in_scan: set[tuple[str, int, int]] = set()
        self._flushing = asyncio.Lock()
        self._told: set[str] = set()
        self._scanned = False

    def sources(self, dataset: Dataset) -> Sources:
        """The explanation folders of a configured dataset."""
        return self._sources[self._datasets.index(dataset)]

    def number(self, folder: Folder) -> int:
        """The number of a folder in the index."""
        return self._index.store.folder(folder.path.rstrip("/"))

    async def scan(self) -> None:
        """Read what changed since the last scan, over all datasets; failures are told of once."""
        self._changed_in_scan.clear()
        scanned: dict[str, bool] = {}
        for dataset, sources in zip(self._datasets, self._sources, strict=True):
            listed = await self._list_cached(dataset, sources)
            for folder in sources.folders:
                path = folder.path.rstrip("/")
                if path not in scanned:
                    scanned[path] = await self._scan_folder(folder)
            await self._run(self._index.commit)
            read = all(scanned[folder.path.rstrip("/")] for folder in sources.folders)
            sources.read_through = sources.read_through or (listed and read)
        for path, number in (await self._run(self._index.store.folders)).items():
            if path not in scanned:
                await self._forget(await self._run(self._index.store.versions, number))
        await self._run(self._index.commit)
        if not self._scanned:
            self._scanned = True
            await self._run(self._index.drop_unused_vectors)
        UNREADABLE_FILES.set(sum((await self._run(self._index.store.unreadable_files)).values()))
        SCAN_TIMESTAMP.set(time.time())

    def changed(self, component: Component, folder: Folder) -> None:
        """Note that a file was written; it is read before the next search is answered."""
        self._changed[(folder.path, component)] = folder
        self._changed_in_scan.add(
            (folder.path.rstrip("/"), component.layer_index, component.component_index)
        )

    async def flush(self) -> None:
        """Read the files that were noted as written."""
        if not self._changed and not self._flushing.locked():
            return
        async with self._flushing:
            changed = dict(self._changed)
            known = {
                folder.path.rstrip("/") for each in self._sources for folder in each.folders
            } | await self._cached_parents(changed.values())
            for key, folder in changed.items():
                # Taken out before it is read: what is written meanwhile is noted anew.
                self._changed.pop(key, None)
                try:
                    await self._read_changed(key, folder, known)
                except BaseException:
                    self._changed.setdefault(key, folder)
                    raise
            if changed:
                await self._run(self._index.commit)

    async def _read_changed(
        self, key: tuple[str, Component], folder: Folder, known: set[str]
    ) -> None:
        path, component = key
        if path.rstrip("/") in known:
            number = await self._run(self.number, folder)
            file = FileKey(number, component.layer_index, component.component_index)
            await self._read(folder, file, _READABLE_LATER)

    async def _cached_parents(self, folders: Iterable[Folder]) -> set[str]:
        """Those of the folders that are new in a cached path, which now belong to its dataset."""
        found: set[str] = set()
        for folder in folders:
            path = folder.path.rstrip("/")
            parent, _, name = path.rpartition("/")
            for dataset, sources in zip(self._datasets, self._sources, strict=True):
                cached = dataset.cached_explanations_path
                if cached is not None and cached.rstrip("/") == parent:
                    await self._list_cached(dataset, sources)
                    found.add(f"{parent}/{name}")
        return found

    async def _list_cached(self, dataset: Dataset, sources: Sources) -> bool:
        if dataset.cached_explanations_path is None:
            return True
        parent = Folder.trusted(dataset.cached_explanations_path)
        try:
            names = sorted(await self._blobs.folders(parent))
        except NeuropilError as error:
            self._tell(parent.name, error)
            return False
        registered = [Folder.trusted(path) for path in dataset.explanation_dataset_paths]
        paths = [parent.file_name(name) for name in names]
        sources.folders = registered + [Folder(path, path, parent.path) for path in paths]
        return True

    async def _scan_folder(self, folder: Folder) -> bool:
        number = await self._run(self.number, folder)
        before = await self._run(self._index.store.versions, number)
        found: dict[FileKey, str] = {}
        try:
            for layer in ascending(await self._blobs.folders(folder)):
                versions = await self._blobs.versions(folder, str(layer))
                found.update(await self._run(_files, number, layer, versions))
        except NeuropilError as error:
            self._tell(folder.name, error)
            return False
        # Of hundreds of thousands of files, so not on the event loop.
        gone, changed = await self._run(_compared, before, found)
        await self._forget(gone)
        whole = True
        for start in range(0, len(changed), _READS_AT_ONCE):
            began = time.monotonic()
            part = changed[start : start + _READS_AT_ONCE]
            read = await asyncio.gather(
                *(self._read(folder, file, found[file], in_scan=True) for file in part)
            )
            whole = whole and all(read)
            if (start + _READS_AT_ONCE) % _COMMIT_FILES == 0:
                await self._run(self._index.commit)
            await asyncio.sleep(time.monotonic() - began)
        return whole

    async def _forget(self, files: Iterable[FileKey]) -> None:
        for file in files:
            await self._run(self._index.forget, file)

    async def _read(
        self, folder: Folder, file: FileKey, version: str, *, in_scan: bool = False
    ) -> bool:
        """Whether the file is in the index as it is, or is known to be of no use."""
        # Which scalar the component has is the dataset's to say; the path of its file does not.
        component = Component("", file.layer_index, file.component_index)
        name = component.explanation_file
        readable = True
        texts: list[Text] = []
        try:
            data = await self._blobs.read(folder, name)
            if data is None:
                await self._run(self._index.forget, file)
                return True
            texts = await self._run(lambda: texts_of(explanations.decode(data, component, folder)))
        except (DataLoss, ResourceExhausted, InvalidArgument) as error:
            self._tell(folder.file_name(name), error)
            readable = False
        except NeuropilError as error:
            self._tell(folder.name, error)
            return False
        if in_scan and self._was_changed(folder, file):
            # What was read may be older than what was written since; that is read on its own.
            return True
        await self._run(lambda: self._index.replace(file, version, texts, readable=readable))
        return True

    def _was_changed(self, folder: Folder, file: FileKey) -> bool:
        path = folder.path.rstrip("/")
        return (path, file.layer_index, file.component_index) in self._changed_in_scan

    def _tell(self, name: str, error: NeuropilError) -> None:
        if name not in self._told:
            self._told.add(name)
            _log.warning("explanations_not_searchable", name=name, error=error.message)

    async def _run(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def _files(number: int, layer: int, versions: dict[str, str]) -> dict[FileKey, str]:
    """The explanation files of a layer and their versions, by component."""
    return {
        FileKey(number, layer, component): versions[f"{component}{_SUFFIX}"]
        for component in ascending(list(versions), _SUFFIX)
    }


def _compared(
    before: dict[FileKey, str], found: dict[FileKey, str]
) -> tuple[list[FileKey], list[FileKey]]:
    """The files that are gone, and those that are new or changed."""
    changed = [file for file, version in found.items() if before.get(file) != version]
    return [file for file in before if file not in found], changed
