"""Finds what is new, changed and gone among the explanation files of all datasets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import structlog

from services.records import explanations
from services.records.components import Component
from services.records.search.documents import FileKey, Text, texts_of
from services.records.search.index import ExplanationIndex
from services.records.search.metrics import SCAN_TIMESTAMP, UNREADABLE_FILES
from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder, canonical_of_configured
from services.records.storage.names import ascending
from shared.errors import DataLoss, InvalidArgument, NeuropilError, ResourceExhausted
from shared.settings import Dataset

_READS_AT_ONCE = 4
_COMMIT_FILES = 1000
_FORGET_AT_ONCE = 500
_READABLE_LATER = ""
_SUFFIX = ".jsonl"

Place = tuple[int, int]
"""Layer and component of a file in its folder."""

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
        self._written: dict[str, dict[Place, Folder]] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._written_in_scan: set[tuple[str, int, int]] = set()
        self._told: set[str] = set()
        self._scanned = False

    def sources(self, dataset: Dataset) -> Sources:
        """The explanation folders of a configured dataset."""
        return self._sources[self._datasets.index(dataset)]

    def mark_incomplete(self) -> None:
        """Note that the index failed: what it lacks is known after the next scan."""
        for sources in self._sources:
            sources.read_through = False

    async def close(self) -> None:
        """End what is being read."""
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)

    async def scan(self) -> None:
        """Read what changed since the last scan, over all datasets; failures are told of once."""
        self._written_in_scan.clear()
        scanned: dict[str, bool] = {}
        for dataset, sources in zip(self._datasets, self._sources, strict=True):
            listed = await self._list_cached(dataset, sources)
            for folder in sources.folders:
                path = path_of(folder)
                if path not in scanned:
                    scanned[path] = await self._scan_folder(folder)
            await self._run(self._index.commit)
            read = all(scanned[path_of(folder)] for folder in sources.folders)
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
        """Note that a file was written; `flush` reads it."""
        path, place = path_of(folder), (component.layer_index, component.component_index)
        if any(self._has(dataset, path) for dataset in self._datasets):
            self._written.setdefault(path, {})[place] = folder
            self._written_in_scan.add((path, *place))

    async def flush(self, dataset: Dataset | None = None, *, seconds: float) -> bool:
        """Read the files that were noted as written, of a dataset or of all, for so long at most.

        Whether all of them were read. Reading goes on where the time is over or the caller leaves.
        """
        paths = {*self._written, *self._reading}
        if dataset is not None:
            paths = {path for path in paths if self._has(dataset, path)}
        if not paths:
            return True
        # What is being read now may have been written again since.
        tasks = [self._reading.get(path) or self._start_reading(path) for path in paths]
        await asyncio.wait(tasks, timeout=seconds)
        return not any(path in self._written or path in self._reading for path in paths)

    def _start_reading(self, path: str) -> asyncio.Task[None]:
        def ended(task: asyncio.Task[None]) -> None:
            self._reading.pop(path, None)
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("written_explanations_not_read", path=path, error=repr(error))

        task = self._reading[path] = asyncio.create_task(self._read_written(path))
        task.add_done_callback(ended)
        return task

    async def _read_written(self, path: str) -> None:
        """Read what was written to a folder, and what is written to it meanwhile."""
        failed: dict[Place, Folder] = {}
        try:
            if not await self._list_cached_of(path):
                return
            number = await self._run(self._index.folder, path)
            while files := dict(islice(self._written.get(path, {}).items(), _READS_AT_ONCE)):
                for place in files:
                    # Taken out before it is read: what is written meanwhile is noted anew.
                    del self._written[path][place]
                failed |= files
                read = await asyncio.gather(
                    *(
                        self._read(folder, FileKey(number, *place), _READABLE_LATER)
                        for place, folder in files.items()
                    )
                )
                for place, whole in zip(files, read, strict=True):
                    if whole:
                        del failed[place]
                if not self._written.get(path):
                    await self._run(self._index.commit)
        finally:
            for place, folder in failed.items():
                self._written.setdefault(path, {}).setdefault(place, folder)
            if not self._written.get(path):
                self._written.pop(path, None)

    def _has(self, dataset: Dataset, path: str) -> bool:
        """Whether a folder is one of the dataset's, also if it is new in its cached path."""
        cached = dataset.cached_explanations_path
        return path in map(_canonical, dataset.explanation_dataset_paths) or (
            cached is not None and path.rpartition("/")[0] == _canonical(cached)
        )

    async def _list_cached_of(self, path: str) -> bool:
        """Whether all datasets that a folder belongs to know it."""
        for dataset, sources in zip(self._datasets, self._sources, strict=True):
            known = path in map(path_of, sources.folders)
            wanted = self._has(dataset, path) and not known
            if wanted and not await self._list_cached(dataset, sources):
                return False
        return True

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
        number = await self._run(self._index.folder, path_of(folder))
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
        # A whole dataset may be gone; nobody who waits for the index waits for all of it.
        rest = iter(files)
        while part := list(islice(rest, _FORGET_AT_ONCE)):
            await self._run(self._index.forget, *part)

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
            found = await self._blobs.load(
                folder, name, lambda data: texts_of(explanations.decode(data, component, folder))
            )
            if found is None:
                await self._run(self._index.forget, file)
                return True
            texts = found
        except (DataLoss, ResourceExhausted, InvalidArgument) as error:
            self._tell(folder.file_name(name), error)
            readable = False
        except NeuropilError as error:
            self._tell(folder.name, error)
            return False
        if in_scan and self._was_written(folder, file):
            # What was read may be older than what was written since; that is read on its own.
            return True
        await self._run(lambda: self._index.replace(file, version, texts, readable=readable))
        return True

    def _was_written(self, folder: Folder, file: FileKey) -> bool:
        place = (path_of(folder), file.layer_index, file.component_index)
        return place in self._written_in_scan

    def _tell(self, name: str, error: NeuropilError) -> None:
        if name not in self._told:
            self._told.add(name)
            _log.warning("explanations_not_searchable", name=name, error=error.message)

    async def _run(self, work: Callable[..., _Result], *arguments: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def path_of(folder: Folder) -> str:
    """What a folder is known by, in whichever form it was written."""
    return _canonical(folder.path)


def _canonical(path: str) -> str:
    return (canonical_of_configured(path) or path).rstrip("/")


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
