"""The index over all explanations: documents on disk, words and vectors in memory."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
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
        self._aside: dict[int, Document] = {}
        # Since the last commit: what to take back where the disk fails.
        self._added: set[int] = set()
        self._removed: set[int] = set()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let `load` and `drop_unused_vectors` end early; for any thread."""
        self._stopped.set()

    def close(self) -> None:
        """Write down what is pending; raises sqlite3.Error where the disk fails, closed as well."""
        self.store.close()

    def load(self) -> None:
        """Take up what was kept."""
        for documents in self.store.all_documents():
            if self._stopped.is_set():
                return
            self._add(documents)
        self._text.commit()

    def folder(self, path: str) -> int:
        """Number of a folder, which it gets where it has none."""
        with self._recovering():
            return self.store.folder(path)

    def replace(
        self, file: FileKey, version: str, texts: Sequence[Text], *, readable: bool = True
    ) -> None:
        """Note what a file holds; by words it is found after `commit`.

        This and all that changes the index raise sqlite3.Error where the disk fails.
        """
        with self._recovering():
            self._apply(self.store.replace(file, version, texts, readable=readable))

    def forget(self, *files: FileKey) -> None:
        """Note that files are gone."""
        with self._recovering():
            for file in files:
                self._apply(self.store.forget(file))

    def commit(self) -> None:
        """Let searches see what was changed, and write it down."""
        self._text.commit()
        self._write_down()

    def pending(self, limit: int, characters: int) -> list[Document]:
        """Documents that have no vectors yet, the newest first.

        As many as have so many characters together, one at least and `limit` at most.
        """
        newest: list[Document] = []
        for number in reversed(self._pending):
            document = self._pending[number]
            characters -= len(document.text)
            if newest and (characters < 0 or len(newest) == limit):
                break
            newest.append(document)
        return newest

    def set_aside(self, document: Document) -> None:
        """Leave a document without a vector until `take_up_again`."""
        if self._pending.pop(document.id, None) is not None:
            self._aside[document.id] = document

    def take_up_again(self) -> list[int]:
        """Let `pending` give again what was set aside; gives their ids."""
        numbers = list(self._aside)
        self._pending.update(self._aside)
        self._aside.clear()
        return numbers

    def num_set_aside(self) -> int:
        """How many documents were set aside and are still there."""
        return len(self._aside)

    def embed(self, documents: Sequence[Document], vectors: Halves) -> None:
        """Note the vectors [n, 384] of documents; those that are gone by now are passed over.

        They are searched also where the disk fails.
        """
        there = [
            position
            for position, document in enumerate(documents)
            if self._pending.pop(document.id, None) is not None
        ]
        self._embed([documents[position] for position in there], vectors[there])
        with self._recovering():
            self.store.keep_vectors(
                {
                    self._key(document.text): vector.tobytes()
                    for document, vector in zip(documents, vectors, strict=True)
                }
            )
        self._write_down()

    def drop_unused_vectors(self) -> None:
        """Forget vectors of texts that are gone."""
        keys: set[bytes] = set()
        for documents in self.store.all_documents():
            if self._stopped.is_set():
                return
            keys.update(self._key(document.text) for document in documents)
        with self._recovering():
            self.store.drop_vectors_except(keys)
        self._write_down()

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

    def _write_down(self) -> None:
        with self._recovering():
            self.store.commit()
        self._added.clear()
        self._removed.clear()

    @contextlib.contextmanager
    def _recovering(self) -> Iterator[None]:
        """Where the disk fails, go back to what was written down last.

        A transaction that failed is taken back, in part by SQLite itself. What words and vectors
        have of it goes too; files that were read since count as not read.
        """
        try:
            yield
        except sqlite3.Error:
            self.store.rollback()
            self._forget_ids(list(self._added))
            back = self.store.documents(list(self._removed - self._added))
            self._add(list(back.values()))
            self._text.commit()
            self._added.clear()
            self._removed.clear()
            raise

    def _places(self, selection: Selection) -> Places:
        def places(ids: Ids) -> NDArray[np.int64]:
            with self._lock:
                return self._columns.places(ids, selection.folders)

        return places

    def _apply(self, change: Change) -> None:
        self._removed.update(change.removed)
        self._added.update(document.id for document in change.added)
        self._forget_ids(change.removed)
        self._add(change.added)

    def _forget_ids(self, ids: Sequence[int]) -> None:
        if not ids:
            return
        self._text.remove(ids)
        for number in ids:
            self._pending.pop(number, None)
            self._aside.pop(number, None)
        with self._lock:
            self._columns.remove(ids)
            self._vectors.remove(np.asarray(ids, np.int64))

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
