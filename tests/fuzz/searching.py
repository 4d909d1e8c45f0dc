"""The search: any query over a fixed index, and any sequence of changes to an index on disk."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from services.records.search.columns import Columns, Selection
from services.records.search.documents import Document, FileKey, Text, storable
from services.records.search.index_text import TextIndex
from services.records.search.paging import (
    Position,
    Ranked,
    fingerprint,
    from_token,
    ranked,
    to_token,
)
from services.records.search.store import Change, ExplanationStore
from shared.errors import InvalidArgument

_TEXTS = (
    "words about cats and dogs",
    "Cats' names, capitalised",
    "the word 'running' or \"ran\"",
    "ünïcödé ÅNGSTRÖM straße",
    "東京 and 大阪府",
    "numbers 1 2 3 1_000 0x1F",
    "-dogs +cats OR (NOT birds) AND words:*",
    "🙂 signs only… no?",
    "x" * 300,
    "naïve cafe\u0301 caf\u00e9",
)
_REQUEST = fingerprint("a search")
_LIMIT = 1000


@functools.cache
def _documents() -> dict[int, Document]:
    scores = (0.5, math.nan, -0.25, 1.0)
    return {
        number: Document(
            number, FileKey(1 + number % 2, number % 3, number), 0, text, scores[number % 4]
        )
        for number, text in enumerate(_TEXTS, 1)
    }


@functools.cache
def _index() -> TextIndex:
    index = TextIndex()
    index.add(_documents().values())
    index.commit()
    return index


@functools.cache
def _columns() -> Columns:
    columns = Columns()
    columns.add(list(_documents().values()))
    return columns


def queries(data: bytes) -> None:
    """A byte that chooses what is selected, and a query: all that share a word, page by page."""
    if not data:
        return
    query = storable(data[1:].decode("utf-8", "replace"))
    selection = Selection(
        (1, 2) if data[0] & 1 else (2,),
        (0, 2) if data[0] & 2 else (),
        0.25 if data[0] & 4 else None,
    )
    _check_token(query)
    words = _words(query)
    try:
        ids, scores, matches = _index().search(query, selection, _LIMIT)
    except InvalidArgument:
        assert not words
        return
    expected = {
        number
        for number, document in _documents().items()
        if words & _words(document.text)
        and document.file.folder in selection.folders
        and document.file.layer_index in (selection.layer_indices or (0, 1, 2))
        and (selection.min_score is None or document.score >= selection.min_score)
    }
    assert set(ids.tolist()) == expected
    assert matches == len(expected)
    assert all(score > 0 and math.isfinite(score) for score in scores)
    whole = _page(query, selection, None, _LIMIT)
    assert [each.order for each in whole] == sorted(each.order for each in whole)
    paged: list[Ranked] = []
    after = None
    while page := _page(query, selection, after, 2):
        paged += page
        after = from_token(to_token(Position(page[-1].order, len(paged)), _REQUEST), _REQUEST)
    assert paged == whole


def _page(query: str, selection: Selection, after: Position | None, count: int) -> list[Ranked]:
    return ranked(
        lambda limit: _index().search(query, selection, limit)[:2],
        lambda ids: _columns().places(ids, selection.folders),
        after,
        count,
    )


def _words(text: str) -> set[str]:
    """Words by their stem and as they are written."""
    index = _index()
    return {f"stem {each}" for each in index._stems.analyze(text)} | {
        f"word {each}" for each in index._words.analyze(text)
    }


def _check_token(text: str) -> None:
    """Whatever is given for a token is none, or one that was given out."""
    try:
        position = from_token(text, _REQUEST)
    except InvalidArgument:
        return
    assert position is None or to_token(position, _REQUEST) == text


@dataclass
class _Model:
    """What the index is to hold, and under which ids."""

    texts: dict[FileKey, list[Text]] = field(default_factory=dict)
    ids: dict[tuple[FileKey, int], int] = field(default_factory=dict)

    def changed(self, file: FileKey, texts: list[Text], change: Change) -> None:
        """Note a change: what stays keeps its id, and no id is ever given twice."""
        before = self.texts.get(file, [])
        same = {at for at, text in enumerate(texts) if at < len(before) and _same(text, before[at])}
        gone = [self.ids.pop((file, at)) for at in range(len(before)) if at not in same]
        assert sorted(change.removed) == sorted(gone)
        assert [each.ordinal for each in change.added] == [
            at for at in range(len(texts)) if at not in same
        ]
        for each in change.added:
            assert each.file == file
            assert _same(Text(each.text, each.score), texts[each.ordinal])
            assert each.id not in self.ids.values()
            self.ids[file, each.ordinal] = each.id
        self.texts[file] = texts


_VOCABULARY = ("cats", "dogs and cats", "", "🙂", "東京 birds", "a\x00b", "dogs", "birds")
_WORDS = {"cats": (0, 1), "dogs": (1, 6), "birds": (4, 7)}
_SCORES = (0.5, math.nan, -1.0, 0.5)
_MOST_CHANGES = 16


def changes(data: bytes) -> None:
    """Files that change, come and go, and restarts, three bytes each: the index keeps up."""
    with tempfile.TemporaryDirectory() as folder:
        store, index = ExplanationStore(Path(folder)), TextIndex()
        try:
            number = store.folder("/explanations")
            assert store.folder("/explanations") == number
            model = _Model()
            for at in range(0, min(len(data), 3 * _MOST_CHANGES), 3):
                action, which, mask = data[at : at + 3].ljust(3, b"\0")
                file = FileKey(number, which % 2, which % 5)
                match action % 5:
                    case 0 | 1:
                        texts = [
                            Text(text, _SCORES[(at + action // 5) % 4])
                            for at, text in enumerate(_VOCABULARY)
                            if mask >> at & 1
                        ]
                        change = store.replace(file, str(mask), texts, readable=bool(texts))
                        model.changed(file, texts, change)
                        _apply(index, change)
                    case 2:
                        change = store.forget(file)
                        model.changed(file, [], change)
                        del model.texts[file]
                        _apply(index, change)
                    case 3:
                        index.commit()
                        store.commit()
                        _check(store, index, model, number)
                    case _:
                        store.close()
                        store, index = ExplanationStore(Path(folder)), TextIndex()
                        for documents in store.all_documents(at_once=3):
                            index.add(documents)
            index.commit()
            _check(store, index, model, number)
        finally:
            store.close()


def _apply(index: TextIndex, change: Change) -> None:
    index.remove(change.removed)
    index.add(change.added)


def _check(store: ExplanationStore, index: TextIndex, model: _Model, folder: int) -> None:
    stored = [document for part in store.all_documents(at_once=2) for document in part]
    assert {(each.file, each.ordinal): each.id for each in stored} == model.ids
    for each in stored:
        assert _same(Text(each.text, each.score), model.texts[each.file][each.ordinal])
    assert repr(list(store.documents([each.id for each in stored]).values())) == repr(stored)
    assert set(store.versions(folder)) == set(model.texts)
    unreadable = sum(not texts for texts in model.texts.values())
    assert store.unreadable_files() == ({folder: unreadable} if unreadable else {})
    for word, places in _WORDS.items():
        ids, _, matches = index.search(word, Selection((folder,)), _LIMIT)
        wanted = _with_texts(stored, [_VOCABULARY[place] for place in places])
        assert set(ids.tolist()) == wanted
        assert matches == len(wanted)


def _with_texts(stored: Iterable[Document], texts: list[str]) -> set[int]:
    return {each.id for each in stored if each.text in texts}


def _same(one: Text, other: Text) -> bool:
    return repr(one) == repr(other)
