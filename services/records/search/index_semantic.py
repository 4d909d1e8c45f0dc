"""Search by meaning: exact inner products of unit vectors, in half precision."""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from services.records.search.columns import Ids

DIMENSIONS = 384
_CLEAR_AT = 1000

Halves = NDArray[np.float16]
Floats = NDArray[np.float32]


class VectorIndex:
    """Unit vectors by document id; 776 bytes each.

    Exact, as an approximate index would not be: a search may be limited to any folders, layers and
    scores, and documents come and go. Half precision halves memory, and time with it.
    """

    def __init__(self) -> None:
        # One thread a query: what runs beside it on the machine is answered too.
        faiss.omp_set_num_threads(1)
        self._index = faiss.IndexIDMap2(
            faiss.IndexScalarQuantizer(
                DIMENSIONS, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
            )
        )
        self._gone: set[int] = set()

    def add(self, ids: Ids, vectors: Halves) -> None:
        """Add vectors [n, 384]."""
        if not self._gone.isdisjoint(ids.tolist()):
            self._clear()
        if len(ids):
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), ids)

    def remove(self, ids: Ids) -> None:
        """Remove vectors; ids without one are passed over.

        Their room is freed in time: no search may select them until they are added again.
        """
        self._gone.update(ids.tolist())
        # Each time all the others are moved: tens of milliseconds.
        if len(self._gone) > max(_CLEAR_AT, int(self._index.ntotal) // 8):
            self._clear()

    def search(
        self, query: Floats, selected: NDArray[np.bool_], limit: int
    ) -> tuple[Ids, NDArray[np.float64]]:
        """Ids and cosines of the documents whose vectors are nearest to `query` [384], best first.

        `selected` [ids] says which ids are looked at.
        """
        limit = min(limit, int(self._index.ntotal))
        if limit == 0:
            return np.zeros(0, np.int64), np.zeros(0)
        bits = np.packbits(selected, bitorder="little")
        parameters = faiss.SearchParameters(  # type: ignore[call-arg]
            sel=faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
        )
        cosines, ids = self._index.search(
            np.ascontiguousarray(query[None], np.float32), limit, params=parameters
        )
        found = ids[0] >= 0
        return ids[0][found], cosines[0][found].astype(np.float64)

    def _clear(self) -> None:
        self._index.remove_ids(faiss.IDSelectorBatch(np.fromiter(self._gone, np.int64)))
        self._gone.clear()
