"""The index over all explanations: documents on disk, words and vectors in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.records.search.columns import Columns, Ids, Selection
from services.records.search.documents import Document, FileKey, Text
from services.records.search.index_semantic import DIMENSIONS, Floats, Halves, VectorIndex
from services.records.search.index_text import TextIndex
from services.records.search.paging import Places, Position, Ranked, ranked
from services.records.search.store import Change, ExplanationStore


class ExplanationIndex:
    """Searched by any thread while one thread changes it."""

    def __init__(self, folder: Path | None, model: str) -> None:
        """An index that is kept in `folder`, where one is given; vectors under `model`."""
        self.store = ExplanationStore(folder)
        self._model = model.encode()
        self._text = TextIndex()
        self._vectors = VectorIndex()
        self._columns = Columns()
        self._lock = threading.Lock()
        self._pending: dict[int, Document] = {}

    def close(self) -> None:
        """Write down what is pending."""
        self.store.close()

    def load(self) -> None:
        """Take up what was kept."""
        for documents in self.store.all_documents():
            self._add(documents)
        self._text.commit()

    def replace(
        self, file: FileKey, version: str, texts: Sequence[Text], *, readable: bool = True
    ) -> None:
        """Note what a file holds; by words it is found after `commit`."""
        self._apply(self.store.replace(file, version, texts, readable=readable))

    def forget(self, file: FileKey) -> None:
        """Note that a file is gone."""
        self._apply(self.store.forget(file))

    def commit(self) -> None:
        """Let searches see what was changed, and write it down."""
        self._text.commit()
        self.store.commit()

    def pending(self, limit: int) -> list[Document]:
        """Documents that have no vectors yet, the newest first."""
        newest = []
        for number in reversed(self._pending):
            newest.append(self._pending[number])
            if len(newest) == limit:
                break
        return newest

    def embed(self, documents: Sequence[Document], vectors: Halves) -> None:
        """Note the vectors [n, 384] of documents; those that are gone by now are passed over."""
        self.store.keep_vectors(
            {
                self._key(document.text): vector.tobytes()
                for document, vector in zip(documents, vectors, strict=True)
            }
        )
        there = [
            position
            for position, document in enumerate(documents)
            if self._pending.pop(document.id, None) is not None
        ]
        self._embed([documents[position] for position in there], vectors[there])
        self.store.commit()

    def drop_unused_vectors(self) -> None:
        """Forget vectors of texts that are gone."""
        keys = {
            self._key(document.text)
            for documents in self.store.all_documents()
            for document in documents
        }
        self.store.drop_vectors_except(keys)
        self.store.commit()

    def count(self) -> tuple[int, int]:
        """Number of documents, and of those with vectors."""
        with self._lock:
            return self._columns.count()

    def count_of(self, folders: Sequence[int]) -> tuple[int, int]:
        """The same in some folders."""
        with self._lock:
            return self._columns.count_of(folders)

    def search_text(
        self, query: str, selection: Selection, after: Position | None, count: int
    ) -> tuple[list[Ranked], int]:
        """Up to `count` hits by words after a position, and how many there are in all."""
        matches = 0

        def best(limit: int) -> tuple[Ids, NDArray[np.float64]]:
            nonlocal matches
            ids, scores, matches = self._text.search(query, selection, limit)
            return ids, scores

        return ranked(best, self._places(selection), after, count), matches

    def search_semantic(
        self, query: Floats, selection: Selection, after: Position | None, count: int
    ) -> tuple[list[Ranked], int]:
        """The same by the inner product with the query's unit vector [384]."""
        with self._lock:
            selected = self._columns.selected(selection)

        def best(limit: int) -> tuple[Ids, NDArray[np.float64]]:
            with self._lock:
                return self._vectors.search(query, selected, limit)

        return ranked(best, self._places(selection), after, count), int(selected.sum())

    def _places(self, selection: Selection) -> Places:
        def places(ids: Ids) -> list[tuple[int, int, int, int]]:
            with self._lock:
                return self._columns.places(ids, selection.folders)

        return places

    def _apply(self, change: Change) -> None:
        if change.removed:
            self._text.remove(change.removed)
            for number in change.removed:
                self._pending.pop(number, None)
            with self._lock:
                self._columns.remove(change.removed)
                self._vectors.remove(np.asarray(change.removed, np.int64))
        self._add(change.added)

    def _add(self, documents: Sequence[Document]) -> None:
        if not documents:
            return
        self._text.add(documents)
        with self._lock:
            self._columns.add(documents)
        keys = {document.id: self._key(document.text) for document in documents}
        known = self.store.vectors(set(keys.values()))
        self._pending.update(
            (document.id, document) for document in documents if keys[document.id] not in known
        )
        embedded = [document for document in documents if keys[document.id] in known]
        if embedded:
            data = b"".join(known[keys[document.id]] for document in embedded)
            self._embed(embedded, np.frombuffer(data, "<f2").reshape(-1, DIMENSIONS))

    def _embed(self, documents: Sequence[Document], vectors: Halves) -> None:
        ids = np.array([document.id for document in documents], np.int64)
        with self._lock:
            self._vectors.add(ids, vectors)
            self._columns.mark_embedded(ids)

    def _key(self, text: str) -> bytes:
        return hashlib.blake2b(self._model + b"\0" + text.encode(), digest_size=16).digest()
