"""What is removed from the index of words is neither found nor counted."""

from __future__ import annotations

import pytest

from services.records.search.columns import Selection
from services.records.search.documents import Document, FileKey
from services.records.search.index_text import TextIndex

_SELECTION = Selection((1,))


def _document(number: int, text: str) -> Document:
    return Document(number, FileKey(1, 0, number), 0, text, 0.5)


@pytest.mark.parametrize("committed", [True, False])
def test_what_was_removed_is_no_match(committed: bool) -> None:
    index = TextIndex()
    index.add([_document(5, "a cat"), _document(6, "a cat"), _document(2**40, "a dog")])
    if committed:
        index.commit()
    index.remove([5, 2**40])
    index.add([_document(7, "a dog")])
    index.commit()
    for query, expected in (("cat", [6]), ("dog", [7])):
        ids, _, matches = index.search(query, _SELECTION, 10)
        assert (ids.tolist(), matches) == (expected, 1)
