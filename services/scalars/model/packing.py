"""Sequences of different lengths in one tensor, without padding.

The tokens of all sequences stand one after another along one axis, so that whatever treats each
token alone runs once over all of them. Sequences of one length stand together: what relates tokens
of a sequence to each other runs once a group, as one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Sequences of one length: the rows in the order in which they stand, and their tokens."""

    rows: tuple[int, ...]
    length: int
    tokens: slice

    def batch(self, tensor: Tensor) -> Tensor:
        """The group's part of a packed tensor (N, ...), as (B, T, ...)."""
        return tensor[self.tokens].view(len(self.rows), self.length, *tensor.shape[1:])


class Packing:
    """Where each token of some sequences (rows) stands.

    `lengths` are the rows' numbers of tokens, in the order of the rows; ValueError where there is
    no row or an empty one. `slices[i]` is where row i stands on the packed axis, `positions` (N,)
    the place of each token in its sequence.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError(f"every sequence must have tokens; lengths are {list(lengths)}")
        self.lengths = tuple(lengths)
        self.device = device or torch.device("cpu")
        groups: list[Group] = []
        slices: dict[int, slice] = {}
        start = 0
        for length in sorted(set(lengths)):
            rows = tuple(row for row, each in enumerate(lengths) if each == length)
            end = start + length * len(rows)
            groups.append(Group(rows, length, slice(start, end)))
            for place, row in enumerate(rows):
                slices[row] = slice(start + place * length, start + (place + 1) * length)
            start = end
        self.total = start
        self.groups = tuple(groups)
        self.slices = tuple(slices[row] for row in range(len(lengths)))
        self.positions = torch.cat(
            [torch.arange(group.length).repeat(len(group.rows)) for group in groups]
        ).to(self.device)

    def __len__(self) -> int:
        return len(self.lengths)

    def pack(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Tokens of all rows, int64 of shape (N,)."""
        return torch.tensor(
            [token for group in self.groups for row in group.rows for token in sequences[row]],
            device=self.device,
        )
