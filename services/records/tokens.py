"""The tokens of many sequences: as texts, or packed as they go to the wire."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Of a repeated field with the number 1 that holds text, as `tokens` is in all messages.
_KEY = 0x0A
_LONGEST = 0x7F
"""A longer text's length takes more than a byte."""

_QUOTE, _CLOSING = ord('"'), ord("]")
# What the character after a backslash stands for; 0 for the rare ones that are not packed.
_ESCAPED = np.zeros(256, dtype=np.uint8)
_ESCAPED[list(b'"\\/ntr')] = list(b'"\\/\n\t\r')


class Tokens:
    """The tokens of all sequences of a part of a record, in order.

    `packed` is every text as UTF-8 behind a key and its length, as the field `tokens` of a message
    is on the wire; None where only `texts` are at hand.
    """

    def __init__(self, texts: list[str] | None = None, packed: bytes | None = None) -> None:
        self._texts = texts
        self.packed = packed

    @property
    def texts(self) -> list[str]:
        """The tokens as they are."""
        if self._texts is None:
            self._texts = _unpacked(self.packed or b"")
        return self._texts


def packed_tokens(lists: bytes, counts: Sequence[int], parts: Sequence[int]) -> list[Tokens] | None:
    """The tokens in JSON lists that follow one another without white space, of so many items each.

    The first `parts[0]` lists make up the first tokens that are returned, and so on. The JSON must
    be valid. None where a list is empty or holds something else than strings, or one of more than
    127 bytes or with a rare escape.
    """
    if not counts:
        return [Tokens(packed=b"") for _ in parts]
    characters = np.frombuffer(lists, dtype=np.uint8)
    packed = characters.copy()
    kept = np.ones(packed.size, dtype=np.bool_)
    is_quote = characters == _QUOTE
    escapes = _escapes(lists)
    if escapes.size:
        packed[escapes + 1] = _ESCAPED[characters[escapes + 1]]
        if not packed[escapes + 1].all():
            return None
        is_quote[escapes + 1] = False
        kept[escapes] = False
    quotes = np.flatnonzero(is_quote)
    ends = np.cumsum(counts)
    if min(counts) == 0 or quotes.size != 2 * ends[-1]:
        return None
    opening, closing = quotes[0::2], quotes[1::2]
    # One comma from text to text, `][` from list to list; so nothing but texts is in them.
    steps = np.full(opening.size + 1, 2)
    steps[ends[:-1]] = 3
    found = np.append(opening, characters.size) - np.append(-1, closing)
    last = closing[ends - 1]
    if (found != steps).any() or (characters[last + 1] != _CLOSING).any():
        return None
    lengths = closing - opening - 1
    np.subtract.at(lengths, np.searchsorted(opening, escapes) - 1, 1)
    if lengths.max() > _LONGEST:
        return None
    packed[opening - 1] = _KEY
    packed[opening] = lengths
    kept[closing] = False
    kept[last + 1] = False
    wire = packed[kept].tobytes()
    sizes = np.append(0, np.cumsum(lengths + 2))
    bounds = sizes[np.append(0, ends)[np.append(0, np.cumsum(parts))]].tolist()
    return [Tokens(packed=wire[start:end]) for start, end in pairwise(bounds)]


def _escapes(lists: bytes) -> NDArray[np.int64]:
    """Where the backslashes are that escape what follows."""
    found: list[int] = []
    at = lists.find(b"\\")
    while at >= 0:
        found.append(at)
        at = lists.find(b"\\", at + 2)
    return np.array(found, dtype=np.int64)


def _unpacked(packed: bytes) -> list[str]:
    texts = []
    start = 0
    while start < len(packed):
        end = start + 2 + packed[start + 1]
        texts.append(packed[start + 2 : end].decode())
        start = end
    return texts
