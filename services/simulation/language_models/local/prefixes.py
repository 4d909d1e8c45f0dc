"""What prompts begin with: keys and values of its segments, computed once and remembered."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Segment:
    """Part of a prefix: its keys and values by layer, [1, key-value heads, ids, head size] each.

    `start` is the position of its first token. Keys hold that position already where the model
    turns them by it, so a segment serves only after the ids that it was computed after.
    """

    ids: tuple[int, ...]
    start: int
    keys: Sequence[Any]
    values: Sequence[Any]

    @property
    def nbytes(self) -> int:
        tensors = (*self.keys, *self.values)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Prefix:
    """A chain of segments that rows continue.

    Where the model's prefixes can't be shared, `segments` is empty and rows compute the ids again.
    """

    ids: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()
    computed: int = 0
    """Tokens that were computed for it now."""
    reused: int = 0
    """Tokens that were remembered."""
    calls: int = 0
    """Forward passes that it took."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class SegmentCache:
    """Segments by what they hold, up to `max_bytes`; what was not used for longest goes first."""

    max_bytes: int
    bytes_held: int = 0
    _by_key: OrderedDict[bytes, Segment] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: bytes) -> Segment | None:
        """The segment of that key, which was now used last."""
        segment = self._by_key.get(key)
        if segment is not None:
            self._by_key.move_to_end(key)
        return segment

    def put(self, key: bytes, segment: Segment) -> None:
        """Keep a segment; one that is larger than the whole bound is not kept."""
        if key in self._by_key or segment.nbytes > self.max_bytes:
            return
        self._by_key[key] = segment
        self.bytes_held += segment.nbytes
        while self.bytes_held > self.max_bytes:
            _, dropped = self._by_key.popitem(last=False)
            self.bytes_held -= dropped.nbytes

    def clear(self) -> None:
        """Drop everything."""
        self._by_key.clear()
        self.bytes_held = 0


def pieces(segments: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """The segments, those of more than `most` ids in several pieces."""
    return [
        tuple(segment[start : start + most])
        for segment in segments
        for start in range(0, len(segment), most)
    ]


def joined(first: Segment, second: Segment) -> Segment:
    """Two segments, one after the other, as one."""
    import torch

    return Segment(
        first.ids + second.ids,
        first.start,
        [torch.cat(pair, dim=2) for pair in zip(first.keys, second.keys, strict=True)],
        [torch.cat(pair, dim=2) for pair in zip(first.values, second.values, strict=True)],
    )


def chain_key(before: bytes, ids: Sequence[int]) -> bytes:
    """Key of a segment of `ids` after what the key `before` stands for (empty: nothing)."""
    return hashlib.blake2b(before + np.asarray(ids, dtype="<i8").tobytes(), digest_size=20).digest()
