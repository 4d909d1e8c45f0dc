"""The index on disk: files, their explanations, and the vectors of their texts, in SQLite.

Text and vector indices are made anew from it at every start; what it spares is reading files that
did not change and embedding texts again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from services.records.search.documents import Document, FileKey, Text

FORMAT = "neuropil-explanations-1"
"""Name of what the database holds; another one is made anew."""

_FILE_NAME = "explanations.sqlite3"
_SCHEMA = """
CREATE TABLE format (name TEXT NOT NULL);
CREATE TABLE folders (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE files (
  folder INTEGER NOT NULL, layer INTEGER NOT NULL, component INTEGER NOT NULL,
  version TEXT NOT NULL, readable INTEGER NOT NULL,
  PRIMARY KEY (folder, layer, component)
) WITHOUT ROWID;
CREATE INDEX unreadable ON files (folder) WHERE NOT readable;
CREATE TABLE documents (
  id INTEGER PRIMARY KEY, folder INTEGER NOT NULL, layer INTEGER NOT NULL,
  component INTEGER NOT NULL, ordinal INTEGER NOT NULL, text TEXT NOT NULL, score REAL,
  UNIQUE (folder, layer, component, ordinal)
);
CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;
"""
_COLUMNS = "id, folder, layer, component, ordinal, text, score"
_AT_ONCE = 500

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """What replacing a file's explanations did to the documents."""

    removed: list[int] = field(default_factory=list)
    added: list[Document] = field(default_factory=list)


class ExplanationStore:
    """The database. Threads may share it; one call at a time runs.

    Raises sqlite3.Error where the disk fails.
    """

    def __init__(self, folder: Path | None) -> None:
        """Open the database in `folder`, or a temporary one that nobody else sees.

        What is in the folder and can't be used is replaced. A folder that another process has open,
        or that can't be written to, is left alone: the database is a temporary one then.
        """
        self._lock = threading.RLock()
        self._folder_lock: int | None = None
        self._database = self._open(folder)
        (last,) = self._database.execute("SELECT max(id) FROM documents").fetchone()
        # Counted here: the database's own count goes back with a transaction that failed, and an
        # id that words or vectors still have would then mean another explanation.
        self._last_id: int = last or 0

    def close(self) -> None:
        """Write down what is pending and let go of the folder, also where the disk fails."""
        with self._lock, contextlib.ExitStack() as stack:
            stack.callback(self._let_go)
            stack.callback(self._database.close)
            self._database.commit()

    def commit(self) -> None:
        """Write down what was changed."""
        with self._lock:
            self._database.commit()

    def rollback(self) -> None:
        """Take back what was changed since it was written down last."""
        with self._lock:
            self._database.rollback()

    def folder(self, path: str) -> int:
        """Number of a folder, which it gets where it has none."""
        with self._lock:
            found = "SELECT id FROM folders WHERE path = ?"
            row = self._database.execute(found, (path,)).fetchone()
            if row is None:
                self._database.execute("INSERT INTO folders (path) VALUES (?)", (path,))
                row = self._database.execute(found, (path,)).fetchone()
            number: int = row[0]
            return number

    def folders(self) -> dict[str, int]:
        """Numbers of all folders by path."""
        with self._lock:
            return dict(self._database.execute("SELECT path, id FROM folders"))

    def versions(self, folder: int) -> dict[FileKey, str]:
        """The files of a folder that are known, and which version of each was read."""
        with self._lock:
            rows = self._database.execute(
                "SELECT layer, component, version FROM files WHERE folder = ?", (folder,)
            ).fetchall()
        return {FileKey(folder, layer, component): version for layer, component, version in rows}

    def unreadable_files(self) -> dict[int, int]:
        """How many files could not be read, by folder."""
        with self._lock:
            return dict(
                self._database.execute(
                    "SELECT folder, count(*) FROM files WHERE NOT readable GROUP BY folder"
                )
            )

    def replace(
        self, file: FileKey, version: str, texts: Sequence[Text], *, readable: bool = True
    ) -> Change:
        """Note what a file holds; explanations that it held already keep their ids."""
        place = (file.folder, file.layer_index, file.component_index)
        change = Change()
        with self._lock:
            before = {
                ordinal: (number, text, score)
                for number, ordinal, text, score in self._database.execute(
                    "SELECT id, ordinal, text, score FROM documents "
                    "WHERE folder = ? AND layer = ? AND component = ?",
                    place,
                )
            }
            for ordinal, text in enumerate(texts):
                # SQLite keeps NaN as NULL.
                score = None if text.score != text.score else text.score
                known = before.pop(ordinal, None)
                if known is not None and known[1:] == (text.text, score):
                    continue
                if known is not None:
                    self._remove(known[0])
                    change.removed.append(known[0])
                number = self._last_id = self._last_id + 1
                self._database.execute(
                    f"INSERT INTO documents ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (number, *place, ordinal, text.text, score),
                )
                change.added.append(Document(number, file, ordinal, text.text, text.score))
            for number, _, _ in before.values():
                self._remove(number)
                change.removed.append(number)
            self._database.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (*place, version, readable)
            )
        return change

    def forget(self, file: FileKey) -> Change:
        """Note that a file is gone."""
        with self._lock:
            change = self.replace(file, "", [])
            self._database.execute(
                "DELETE FROM files WHERE folder = ? AND layer = ? AND component = ?",
                (file.folder, file.layer_index, file.component_index),
            )
        return change

    def documents(self, ids: Sequence[int]) -> dict[int, Document]:
        """Documents by their ids; those that are gone by now are left out."""
        found: dict[int, Document] = {}
        with self._lock:
            for part in _parts(ids):
                marks = ",".join("?" * len(part))
                rows = self._database.execute(
                    f"SELECT {_COLUMNS} FROM documents WHERE id IN ({marks})", part
                )
                found.update((row[0], _document(row)) for row in rows)
        return found

    def all_documents(self, at_once: int = 2000) -> Iterator[list[Document]]:
        """All documents, in parts, in the order of their ids."""
        last = 0
        while True:
            with self._lock:
                rows = self._database.execute(
                    f"SELECT {_COLUMNS} FROM documents WHERE id > ? ORDER BY id LIMIT ?",
                    (last, at_once),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [_document(row) for row in rows]

    def vectors(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Those of the vectors that are known."""
        found: dict[bytes, bytes] = {}
        with self._lock:
            for part in _parts(list(keys)):
                marks = ",".join("?" * len(part))
                found.update(
                    self._database.execute(
                        f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part
                    )
                )
        return found

    def keep_vectors(self, vectors: dict[bytes, bytes]) -> None:
        """Keep vectors for the next start."""
        with self._lock:
            self._database.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?)", vectors.items()
            )

    def drop_vectors_except(self, keys: set[bytes]) -> None:
        """Drop vectors of texts that are gone, once they are more than those in use."""
        with self._lock:
            known = [key for (key,) in self._database.execute("SELECT key FROM vectors")]
            gone = [(key,) for key in known if key not in keys]
            if len(gone) > max(len(keys), 1000):
                self._database.executemany("DELETE FROM vectors WHERE key = ?", gone)

    def _let_go(self) -> None:
        if self._folder_lock is not None:
            os.close(self._folder_lock)
            self._folder_lock = None

    def _remove(self, number: int) -> None:
        self._database.execute("DELETE FROM documents WHERE id = ?", (number,))

    def _open(self, folder: Path | None) -> sqlite3.Connection:
        if folder is None or not self._take(folder):
            return _made_anew(sqlite3.connect("", check_same_thread=False))
        path = folder / _FILE_NAME
        try:
            database = sqlite3.connect(path, check_same_thread=False)
            try:
                if _is_ours(database):
                    return database
            except sqlite3.Error:
                pass
            database.close()
            if path.exists() and path.stat().st_size:
                _log.warning("search_index_replaced", path=str(path), detail="it can't be used")
            for leftover in folder.glob(f"{_FILE_NAME}*"):
                leftover.unlink()
            return _made_anew(sqlite3.connect(path, check_same_thread=False))
        except (OSError, sqlite3.Error) as error:
            _log.warning("search_index_not_kept", path=str(path), error=str(error))
            return _made_anew(sqlite3.connect("", check_same_thread=False))

    def _take(self, folder: Path) -> bool:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _log.warning("search_index_not_kept", path=str(folder), error=str(error))
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            _log.warning("search_index_not_kept", path=str(folder), error="another process has it")
            return False
        self._folder_lock = handle
        return True


def _is_ours(database: sqlite3.Connection) -> bool:
    if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        return False
    if database.execute("SELECT name FROM format").fetchall() != [(FORMAT,)]:
        return False
    _tuned(database)
    return True


def _made_anew(database: sqlite3.Connection) -> sqlite3.Connection:
    _tuned(database)
    database.executescript(_SCHEMA)
    database.execute("INSERT INTO format VALUES (?)", (FORMAT,))
    database.commit()
    return database


def _tuned(database: sqlite3.Connection) -> None:
    # What a power cut takes away is read again.
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")


def _document(row: tuple[int, int, int, int, int, str, float | None]) -> Document:
    number, folder, layer, component, ordinal, text, score = row
    return Document(
        number,
        FileKey(folder, layer, component),
        ordinal,
        text,
        float("nan") if score is None else score,
    )


def _parts(items: Sequence[int] | Sequence[bytes]) -> Iterator[Sequence[int] | Sequence[bytes]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]
