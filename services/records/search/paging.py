"""The order of hits, and the tokens of pages."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.records.search.columns import Ids
from shared.errors import InvalidArgument

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_HITS = 10_000
"""A search gives no more hits than this, over all pages."""

_DECIMALS = 6
_LAYOUT = struct.Struct("<B8sdi8sqqiI")
_VERSION = 2
_CHECK_BYTES = 4
_MORE = 8
"""How many times more documents are looked at where too many are equally relevant."""

Order = tuple[float, int, int, int, int]
"""Less relevance, folder by its position, layer, component, ordinal: what hits are sorted by."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A hit and its place in the order."""

    id: int
    order: Order

    @property
    def relevance(self) -> float:
        """How well it matches."""
        return -self.order[0]


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: its last hit's place, and how many hits there were up to it."""

    order: Order
    seen: int
    folder: bytes = bytes(8)
    """`folder_key` of the last hit's folder."""

    def among(self, folders: Sequence[bytes]) -> Position:
        """The same where a dataset has these folders now, which others may have come before."""
        if self.folder not in folders:
            return self
        relevance, _, *place = self.order
        layer, component, ordinal = place
        order = (relevance, folders.index(self.folder), layer, component, ordinal)
        return replace(self, order=order)


Best = Callable[[int], tuple[Ids, NDArray[np.float64]]]
"""Gives the ids and relevances of so many best documents, best first; ties in any order."""
Places = Callable[[Ids], NDArray[np.int64]]
"""Gives folder by its position (-1: gone), layer, component, ordinal of documents: [n, 4]."""


def ranked(best: Best, places: Places, after: Position | None, count: int) -> list[Ranked]:
    """Up to `count` hits after a position, best first; ties by folder, layer, component, ordinal.

    What comes and goes between two pages changes the relevance of all that match by words: they go
    on after the last page's last hit, wherever that is by now, or if it is gone, where it was.
    """
    seen = after.seen if after else 0
    count = min(count, MAX_HITS - seen)
    if count <= 0:
        return []
    limit = seen + count + 1
    while True:
        ids, relevances = best(limit)
        relevances = np.round(relevances, _DECIMALS)
        whole = len(ids) < limit or limit > MAX_HITS
        if not whole:
            # Documents as relevant as the last one may have been cut off: which, nobody knows.
            kept = relevances > relevances[-1]
            ids, relevances = ids[kept], relevances[kept]
        # Thousands may be equally relevant: objects are made of the page's hits only.
        where = np.asarray(places(ids), np.int64).reshape(-1, 4)
        there = where[:, 0] >= 0
        ids, relevances, where = ids[there], relevances[there], where[there]
        sorting = np.lexsort((*where.T[::-1], -relevances))
        ids, relevances, where = ids[sorting], relevances[sorting], where[sorting]
        start, begins = _start(relevances, where, after)
        if whole or (begins and len(ids) - start >= count):
            page = slice(start, start + count)
            return [
                Ranked(number, (-relevance, *place))
                for number, relevance, place in zip(
                    ids[page].tolist(), relevances[page].tolist(), where[page].tolist(), strict=True
                )
            ]
        limit = min(_MORE * limit, MAX_HITS + 1)


def _start(
    relevances: NDArray[np.float64], where: NDArray[np.int64], after: Position | None
) -> tuple[int, bool]:
    """Index of the first of sorted hits after a position, and whether it is sure to be."""
    if after is None:
        return 0, True
    relevance, *place = after.order
    last = np.flatnonzero((where == place).all(axis=1))
    if len(last):
        return int(last[0]) + 1, True
    first, end = (int(np.searchsorted(-relevances, relevance, side)) for side in ("left", "right"))
    before = sum(tuple(each) <= tuple(place) for each in where[first:end].tolist())
    return first + before, False


def folder_key(path: str) -> bytes:
    """What a folder is called in tokens, on all replicas."""
    return hashlib.blake2b(path.encode("utf-8", "replace"), digest_size=8).digest()


def fingerprint(*parts: object) -> bytes:
    """What tells one request's tokens from another's."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "replace"), digest_size=8).digest()


def to_token(position: Position, request: bytes) -> str:
    """The token of the page after `position` of the request with that fingerprint."""
    body = _LAYOUT.pack(
        _VERSION, request, *position.order[:2], position.folder, *position.order[2:], position.seen
    )
    return base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")


def from_token(token: str, request: bytes) -> Position | None:
    """Where the page before ended; None for the first page.

    InvalidArgument where the token is not one that `to_token` gave for the same request.
    """
    if not token:
        return None
    try:
        data = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), b"-_", True)
    except (UnicodeEncodeError, binascii.Error):
        data = b""
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if len(body) != _LAYOUT.size or check != _check(body) or body[0] != _VERSION:
        raise InvalidArgument(
            "page_token is none of this service; give a next_page_token, or leave it empty.",
            field="page_token",
        )
    _, of, relevance, place, folder, layer, component, ordinal, seen = _LAYOUT.unpack(body)
    if of != request:
        raise InvalidArgument(
            "page_token is of another search: dataset, query, mode and filters must stay the same.",
            field="page_token",
        )
    return Position((relevance, place, layer, component, ordinal), seen, folder)


def _check(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECK_BYTES, person=b"search").digest()
