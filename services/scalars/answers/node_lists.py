"""Lists of nodes, column by column: a page lists hundreds, a whole prompt hundreds of thousands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from services.scalars.deriving.indexing import NodeIndex
from services.scalars.model.locations import NodeType, PassType

INDICES = 3
"""Most indices that a node has."""

Column = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class NodeList:
    """n nodes of a few types, in order.

    `kinds` (n,) are positions in `node_types`; `layers` (n,) are -1 where a node has none, and
    `indices` (n, 3) where it has fewer.
    """

    node_types: tuple[NodeType, ...]
    kinds: Column
    layers: Column
    indices: Column
    pass_type: PassType = PassType.FORWARD

    def __len__(self) -> int:
        return len(self.kinds)

    def __iter__(self) -> Iterator[NodeIndex]:
        columns = (self.kinds.tolist(), self.layers.tolist(), self.indices.tolist())
        for kind, layer, indices in zip(*columns, strict=True):
            yield NodeIndex(
                self.node_types[kind],
                tuple(index for index in indices if index >= 0),
                None if layer < 0 else layer,
                self.pass_type,
            )

    @cached_property
    def key(self) -> tuple[object, ...]:
        """The same for lists of the same nodes, and hashable; of few bytes, as keys are kept."""
        digest = blake2b(digest_size=32)
        for column in (self.kinds, self.layers, self.indices):
            digest.update(np.ascontiguousarray(column, dtype=np.int64).data)
        return (self.node_types, self.pass_type, len(self), digest.digest())

    def blocks(self) -> Iterator[tuple[NodeType, int, Column]]:
        """The nodes of one type and layer (-1 for none) together: their positions in the list."""
        span = int(self.layers.max(initial=-1)) + 2
        keys = self.kinds * span + self.layers + 1
        for key in np.unique(keys).tolist():
            kind, layer = key // span, key % span - 1
            yield self.node_types[kind], layer, np.flatnonzero(keys == key)

    def ordered(self, order: Column) -> NodeList:
        """The nodes at these positions, in their order."""
        return NodeList(
            self.node_types,
            self.kinds[order],
            self.layers[order],
            self.indices[order],
            self.pass_type,
        )


def no_nodes(node_types: tuple[NodeType, ...], pass_type: PassType) -> NodeList:
    """An empty list."""
    nothing = np.empty(0, dtype=np.int64)
    return NodeList(node_types, nothing, nothing, np.empty((0, INDICES), dtype=np.int64), pass_type)


def joined(lists: Sequence[NodeList]) -> NodeList:
    """Lists of the same node types one after another; ValueError where they are of others."""
    first = lists[0]
    if any(each.node_types != first.node_types for each in lists):
        raise ValueError("lists of different node types are not joined")
    return NodeList(
        first.node_types,
        np.concatenate([each.kinds for each in lists]),
        np.concatenate([each.layers for each in lists]),
        np.concatenate([each.indices for each in lists]),
        first.pass_type,
    )


def united(lists: Sequence[NodeList]) -> NodeList:
    """Each node of the lists once, where it comes first."""
    together = joined(lists)
    rows = np.column_stack([together.kinds, together.layers, together.indices])
    # Unlike numpy's unique rows this lets other threads work while it sorts.
    order = np.lexsort(rows.T)
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    return together.ordered(np.sort(order[is_first]))
