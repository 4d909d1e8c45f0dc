"""Tensors of a whole batch, seen, overwritten and kept row by row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from services.scalars.model.locations import ActivationLocationType, LayerIndex, PassType

Place = tuple[ActivationLocationType, LayerIndex]


@dataclass(frozen=True)
class RawTensorId:
    """One tensor of a forward pass, or its gradient."""

    location: ActivationLocationType
    layer: LayerIndex
    pass_type: PassType

    @property
    def place(self) -> Place:
        """The tensor, whichever pass is meant."""
        return self.location, self.layer


@dataclass(frozen=True)
class Overwrite:
    """Elements of one tensor and the value that they are set to.

    `index` has an entry an axis of one sequence's tensor; a slice takes the whole axis.
    """

    target: RawTensorId
    index: tuple[int | slice, ...]
    value: float


@dataclass(frozen=True)
class Part:
    """A tensor of some rows: the view that each row has of it, in the shape of one sequence."""

    tensor: Tensor
    slices: Mapping[int, slice]
    pairs: bool = False

    def row(self, index: int) -> Tensor:
        """A row's view."""
        where = self.slices[index]
        if not self.pairs:
            return self.tensor[where]
        # (B, H, T, S) is how attention computes, (T, S, H) how the rest of the world sees it.
        return self.tensor[where.start].permute(1, 2, 0)

    def with_tensor(self, tensor: Tensor) -> Part:
        """Another tensor of the same rows."""
        return Part(tensor, self.slices, self.pairs)

    def of_rows(self, rows: Collection[int]) -> list[Part]:
        """What keeps the tensors of some rows alive and, if these are not all, of no others."""
        if all(row in rows for row in self.slices):
            return [self]
        return [
            Part(self.tensor[where].clone(), {row: slice(0, where.stop - where.start)}, self.pairs)
            for row, where in self.slices.items()
            if row in rows
        ]


Overwrites = Mapping[int, Sequence[Overwrite]]
"""The overwrites of one tensor, by row."""


def overwritten(part: Part, by_row: Overwrites) -> Tensor:
    """The tensor, or a copy of it with the elements of all rows set."""
    rows = [row for row in part.slices if row in by_row]
    if not rows:
        return part.tensor
    changed = part.with_tensor(part.tensor.clone())
    for row in rows:
        view = changed.row(row)
        for overwrite in by_row[row]:
            view[overwrite.index] = overwrite.value
    return changed.tensor


def watch_gradient(part: Part, by_row: Overwrites, rows: Collection[int], kept: list[Part]) -> None:
    """Overwrites the gradient of the tensor where it flows by, and keeps it for some rows."""
    if part.slices.keys().isdisjoint({*by_row, *rows}):
        return
    # The hook must not hold the tensor that holds it: the whole graph would stay until the garbage
    # collector finds the circle.
    slices, pairs = part.slices, part.pairs

    def flows(gradient: Tensor) -> Tensor:
        passing = Part(gradient, slices, pairs)
        passing = passing.with_tensor(overwritten(passing, by_row))
        kept.extend(passing.of_rows(rows))
        return passing.tensor

    part.tensor.register_hook(flows)  # type: ignore[no-untyped-call]


def without_gradient(part: Part, rows: Collection[int]) -> Tensor:
    """The tensor for what comes after it, from where no gradient reaches these rows of it.

    It is set to 0 rather than multiplied: it may be no number.
    """
    if not part.tensor.requires_grad:
        return part.tensor
    slices = [part.slices[row] for row in rows]

    def flows(gradient: Tensor) -> Tensor:
        reached = gradient.clone()
        for where in slices:
            reached[where] = 0
        return reached

    after = part.tensor.view_as(part.tensor)
    after.register_hook(flows)  # type: ignore[no-untyped-call]
    return after


def find_row(stored: Mapping[Place, Sequence[Part]], place: Place, row: int) -> Tensor | None:
    """A row's view of the tensor at a place; None where nothing is stored of it."""
    for part in stored.get(place, ()):
        if row in part.slices:
            return part.row(row)
    return None
