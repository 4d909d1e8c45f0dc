"""Token lists of directions that only the model's weights determine, kept between requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from services.scalars.vocabulary.vocabulary_lists import TokenLists

_LIMIT_BYTES = 32 << 20
_ENTRY_BYTES = 1000
"""About what an entry takes besides its arrays."""


class RememberedLists:
    """Lists of single directions by what they are directions of; any thread may use it.

    What was not used for longest is forgotten where they would take more than `limit_bytes`.
    """

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._lists: OrderedDict[Hashable, TokenLists] = OrderedDict()
        self._n_bytes = 0

    def __len__(self) -> int:
        return len(self._lists)

    @property
    def n_bytes(self) -> int:
        """About what it keeps in memory."""
        return self._n_bytes

    def get(self, key: Hashable, count: int) -> TokenLists | None:
        """The lists of a direction, (1, k) with k at least `count`; None where they are not here.

        Longer lists serve as well: they begin with what the shorter ones hold.
        """
        with self._lock:
            found = self._lists.get(key)
            if found is None or found.top_ids.shape[1] < count:
                return None
            self._lists.move_to_end(key)
            return found

    def put(self, key: Hashable, lists: TokenLists) -> None:
        """Remembers the lists of a direction, (1, k), in the place of shorter ones."""
        with self._lock:
            before = self._lists.pop(key, None)
            if before is not None:
                self._n_bytes -= before.n_bytes + _ENTRY_BYTES
            self._lists[key] = lists
            self._n_bytes += lists.n_bytes + _ENTRY_BYTES
            while self._n_bytes > self._limit_bytes:
                _, oldest = self._lists.popitem(last=False)
                self._n_bytes -= oldest.n_bytes + _ENTRY_BYTES
