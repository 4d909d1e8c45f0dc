"""Rows one after another in one pass, without padding, and what of it each token sees.

All rows continue the same prefix. The tokens of a row are its ids, and after them its branches:
one a wanted position, each of which sees the row up to that position and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.language_models.local.rows import Row

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring rows of `length` tokens each, from the packed token `start` on.

    `visible` [length, length] says what a token sees of its row; None means all up to itself.
    """

    start: int
    rows: int
    length: int
    offsets: IntArray
    """[length]: positions of the tokens, counted from the row's first."""
    visible: NDArray[np.bool_] | None = None

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.length


@dataclass(frozen=True, eq=False)
class PackedRows:
    """`ids` and `offsets` [tokens]; `order` are the numbers of the rows as they stand."""

    ids: IntArray
    offsets: IntArray
    groups: tuple[Group, ...]
    order: tuple[int, ...]
    wanted: tuple[IntArray, ...]
    """By row as given: packed indices of its positions."""
    wanted_branches: tuple[IntArray, ...]
    """By row as given: packed indices of the last token of the branch at each position."""

    @classmethod
    def next_tokens(cls, ids: Sequence[int], offsets: Sequence[int]) -> PackedRows:
        """A token a row, each at its own offset after the prefix."""
        rows = len(ids)
        group = Group(0, rows, 1, np.zeros(1, np.int64))
        order = tuple(range(rows))
        wanted = tuple(np.asarray([row]) for row in order)
        return cls(
            np.asarray(ids, np.int64), np.asarray(offsets, np.int64), (group,), order, wanted, ()
        )

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> PackedRows:
        """Pack rows; those of one length stand together."""
        order = sorted(range(len(rows)), key=lambda n: (bool(rows[n].branch), len(rows[n].ids), n))
        ids: list[IntArray] = []
        offsets: list[IntArray] = []
        groups: list[Group] = []
        wanted: list[IntArray] = [np.empty(0, np.int64)] * len(rows)
        branches = list(wanted)
        start = 0
        for number in order:
            row = rows[number]
            own = np.asarray(row.ids, dtype=np.int64)
            positions = np.asarray(row.positions, dtype=np.int64)
            wanted[number] = start + positions
            if row.branch:
                steps = len(row.branch)
                tail = np.tile(np.asarray(row.branch, dtype=np.int64), len(positions))
                tail_offsets = (positions[:, None] + 1 + np.arange(steps)).reshape(-1)
                branches[number] = start + len(own) + steps * np.arange(1, len(positions) + 1) - 1
                row_ids = np.concatenate([own, tail])
                row_offsets = np.concatenate([np.arange(len(own)), tail_offsets])
                visible = _visible(len(own), positions, steps)
                groups.append(Group(start, 1, len(row_ids), row_offsets, visible))
            else:
                row_ids, row_offsets = own, np.arange(len(own))
                last = groups[-1] if groups else None
                if last is not None and last.visible is None and last.length == len(own):
                    groups[-1] = Group(last.start, last.rows + 1, last.length, last.offsets)
                else:
                    groups.append(Group(start, 1, len(own), row_offsets))
            ids.append(row_ids)
            offsets.append(row_offsets)
            start += len(row_ids)
        return cls(
            np.concatenate(ids),
            np.concatenate(offsets),
            tuple(groups),
            tuple(order),
            tuple(wanted),
            tuple(branches),
        )


def _visible(own: int, positions: IntArray, steps: int) -> NDArray[np.bool_]:
    total = own + steps * len(positions)
    visible = np.zeros((total, total), dtype=np.bool_)
    visible[:own, :own] = np.tri(own, dtype=np.bool_)
    # Branch tokens: the row up to their position, and their own branch up to themselves.
    branch_of = np.repeat(np.arange(len(positions)), steps)
    visible[own:, :own] = np.arange(own)[None, :] <= positions[branch_of][:, None]
    place = np.arange(total - own)
    visible[own:, own:] = (branch_of[:, None] == branch_of[None, :]) & (
        place[None, :] <= place[:, None]
    )
    return visible


def batches(rows: Sequence[Row], max_tokens: int) -> list[list[int]]:
    """Numbers of rows by forward pass: at most `max_tokens` each, but one row at least.

    Rows of like length go together.
    """
    order = sorted(range(len(rows)), key=lambda n: (bool(rows[n].branch), len(rows[n].ids), n))
    found: list[list[int]] = []
    filled = max_tokens
    for number in order:
        size = rows[number].computed
        if filled + size > max_tokens:
            found.append([])
            filled = 0
        found[-1].append(number)
        filled += size
    return found
