"""What is stored in Redis under the key of a reply.

A value begins with four bytes that say what it is: a reply behind its checksum (XXH3, 64 bits), the
note that there is nothing, the mark of who is loading it, or the note that the load gave nothing
that can be shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import xxhash

_REPLY = b"NPR2"
_MISSING = b"NPM2"
_LOADING = b"NPL2"
_NOT_SHARED = b"NPF2"
_DIGEST_BYTES = 8
_HEADER_BYTES = len(_REPLY) + _DIGEST_BYTES

MISSING_VALUE = _MISSING
NOT_SHARED_VALUE = _NOT_SHARED


class Note(Enum):
    """What a value says that is no reply."""

    MISSING = "missing"
    LOADING = "loading"
    NOT_SHARED = "not shared"
    CORRUPT = "corrupt"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to load the reply of a key for all replicas; `mark` is what is stored meanwhile."""

    key: str
    mark: bytes


def mark_of(token: bytes) -> bytes:
    """The value of a key while the owner of `token` loads its reply."""
    return _LOADING + token


def header_of(reply: bytes) -> bytes:
    """What precedes a reply in its value."""
    return _REPLY + xxhash.xxh3_64_digest(reply)


def decode(value: object) -> bytes | Note:
    """The reply in a value, or what the value says instead."""
    if not isinstance(value, bytes):
        return Note.CORRUPT
    kind = value[: len(_REPLY)]
    if kind == _REPLY:
        digest = value[len(_REPLY) : _HEADER_BYTES]
        if xxhash.xxh3_64_digest(memoryview(value)[_HEADER_BYTES:]) == digest:
            return value[_HEADER_BYTES:]
        return Note.CORRUPT
    if kind == _LOADING:
        return Note.LOADING
    if value == _MISSING:
        return Note.MISSING
    if value == _NOT_SHARED:
        return Note.NOT_SHARED
    return Note.CORRUPT
