"""What searches select and order by, as columns over the ids of documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.records.search.documents import Document

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which documents a search looks at: of these folders, and what the request asks for.

    `folders` are numbers in the order of the dataset's configuration, which ties are broken by.
    """

    folders: tuple[int, ...]
    layer_indices: tuple[int, ...] = ()
    """Empty: all."""
    min_score: float | None = None


class Columns:
    """Folder, layer, component, ordinal and score of every document; 37 bytes each."""

    def __init__(self) -> None:
        self._folder = np.full(1024, -1, np.int32)
        self._layer = np.zeros(1024, np.int64)
        self._component = np.zeros(1024, np.int64)
        self._ordinal = np.zeros(1024, np.int32)
        self._score = np.full(1024, np.nan)
        self._embedded = np.zeros(1024, bool)

    def add(self, documents: Sequence[Document]) -> None:
        """Note documents."""
        if not documents:
            return
        ids = np.array([document.id for document in documents], np.int64)
        self._grow(int(ids.max()) + 1)
        self._folder[ids] = [document.file.folder for document in documents]
        self._layer[ids] = [document.file.layer_index for document in documents]
        self._component[ids] = [document.file.component_index for document in documents]
        self._ordinal[ids] = [document.ordinal for document in documents]
        self._score[ids] = [document.score for document in documents]
        self._embedded[ids] = False

    def remove(self, ids: Sequence[int]) -> None:
        """Forget documents."""
        numbers = np.asarray(ids, np.int64)
        self._folder[numbers] = -1
        self._embedded[numbers] = False

    def mark_embedded(self, ids: Ids) -> None:
        """Note that the documents have vectors."""
        self._embedded[ids] = True

    def count(self) -> tuple[int, int]:
        """How many documents there are, and how many of them have vectors."""
        return int((self._folder >= 0).sum()), int(self._embedded.sum())

    def count_of(self, folders: Iterable[int]) -> tuple[int, int]:
        """The same of some folders."""
        inside = np.isin(self._folder, list(folders))
        return int(inside.sum()), int((inside & self._embedded).sum())

    def selected(self, selection: Selection) -> NDArray[np.bool_]:
        """Which ids are selected and have vectors: [largest id + 1]."""
        mask = np.isin(self._folder, selection.folders) & self._embedded
        if selection.layer_indices:
            mask &= np.isin(self._layer, selection.layer_indices)
        if selection.min_score is not None:
            mask &= self._score >= selection.min_score
        return mask

    def places(self, ids: Ids, folders: Sequence[int]) -> NDArray[np.int64]:
        """Folder by its position in `folders`, layer, component, ordinal: [n, 4].

        What ties are broken by. The position is -1 where a document is gone by now.
        """
        position = np.full(len(ids), -1, np.int64)
        for place, number in enumerate(folders):
            position[self._folder[ids] == number] = place
        return np.stack(
            [position, self._layer[ids], self._component[ids], self._ordinal[ids]], axis=1
        )

    def _grow(self, size: int) -> None:
        have = len(self._folder)
        if size <= have:
            return
        more = max(size, 2 * have) - have
        self._folder = np.concatenate([self._folder, np.full(more, -1, np.int32)])
        self._layer = np.concatenate([self._layer, np.zeros(more, np.int64)])
        self._component = np.concatenate([self._component, np.zeros(more, np.int64)])
        self._ordinal = np.concatenate([self._ordinal, np.zeros(more, np.int32)])
        self._score = np.concatenate([self._score, np.full(more, np.nan)])
        self._embedded = np.concatenate([self._embedded, np.zeros(more, bool)])
