"""The most extreme elements of large tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 64
_MINIMUM_FOR_BLOCKS = 1 << 14
"""Elements of a tensor from which on it pays to look at the extrema of its blocks first."""


@dataclass(frozen=True)
class Extremes:
    """The most extreme elements of several tensors together, most extreme first.

    `values`, the tensor that each is of (`owners`) and its place in that tensor laid out flat
    (`positions`) have the shape (k,).
    """

    values: Tensor
    owners: Tensor
    positions: Tensor


def top_and_bottom(tensors: Sequence[Tensor], k: int) -> tuple[Extremes, Extremes]:
    """The k largest and the k smallest elements of several tensors together.

    Every tensor is read once, for the extrema of its blocks; only the best blocks of all tensors
    are looked into: no element outside the k best blocks can be among the k best elements. Elements
    that are not a number take no part, so that fewer than k may be answered. Which of several equal
    elements is answered is not specified.
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    if _are_small(flat):
        return _best_of_small(flat, k, largest=True), _best_of_small(flat, k, largest=False)
    largest, smallest = [], []
    for each in flat:
        high, low = _block_extrema(each)
        largest.append(high)
        smallest.append(low)
    return _best(flat, largest, k, largest=True), _best(flat, smallest, k, largest=False)


def top_of_several(tensors: Sequence[Tensor], k: int, *, largest: bool) -> Extremes:
    """The same of one end alone."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    if _are_small(flat):
        return _best_of_small(flat, k, largest=largest)
    extrema = [_block_extrema(each)[0 if largest else 1] for each in flat]
    return _best(flat, extrema, k, largest=largest)


def _are_small(flat: Sequence[Tensor]) -> bool:
    return all(each.numel() <= _MINIMUM_FOR_BLOCKS for each in flat)


def _best_of_small(flat: Sequence[Tensor], k: int, *, largest: bool) -> Extremes:
    """The best of each tensor first, then the best of these.

    Of equal elements this answers those that the reference implementation answers, which looks at
    one layer after the other in the same way.
    """
    device = flat[0].device if flat else torch.device("cpu")
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    if k <= 0 or sum(each.numel() for each in flat) == 0:
        return Extremes(torch.empty(0, device=device), nothing, nothing)
    worst = float("-inf") if largest else float("inf")
    values, owners, positions = [], [], []
    for owner, each in enumerate(flat):
        clean = torch.where(each.isnan(), worst, each)
        if k >= each.numel():
            best = torch.argsort(clean, descending=largest)
        else:
            best = torch.topk(clean, k, largest=largest).indices
        values.append(clean[best])
        owners.append(torch.full_like(best, owner))
        positions.append(best)
    candidates = torch.cat(values)
    best, order = torch.topk(candidates, min(k, len(candidates)), largest=largest)
    return _numbers_of(flat, Extremes(best, torch.cat(owners)[order], torch.cat(positions)[order]))


def _block_extrema(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima and minima of blocks of 64 elements, the last block the rest."""
    whole = flat.numel() // _BLOCK * _BLOCK
    blocks = flat[:whole].view(-1, _BLOCK)
    rest = flat[whole:]
    if rest.numel() == 0:
        return blocks.amax(dim=1), blocks.amin(dim=1)
    return (
        torch.cat([blocks.amax(dim=1), rest.amax()[None]]),
        torch.cat([blocks.amin(dim=1), rest.amin()[None]]),
    )


def _best(flat: Sequence[Tensor], extrema: Sequence[Tensor], k: int, *, largest: bool) -> Extremes:
    device = flat[0].device if flat else torch.device("cpu")
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    if k <= 0 or sum(each.numel() for each in flat) == 0:
        return Extremes(torch.empty(0, device=device), nothing, nothing)
    worst = float("-inf") if largest else float("inf")
    together = torch.cat(list(extrema))
    # An extremum is not a number as soon as one element of its block is not.
    if bool(together.isnan().any()):
        clean = [torch.where(each.isnan(), worst, each) for each in flat]
        replaced = [_block_extrema(each)[0 if largest else 1] for each in clean]
        return _numbers_of(flat, _best(clean, replaced, k, largest=largest))
    chosen = torch.topk(together, min(k, len(together)), largest=largest).indices.sort().values
    inside = torch.arange(_BLOCK, device=device)
    values, owners, positions = [], [], []
    first_block = 0
    for owner, (each, own) in enumerate(zip(flat, extrema, strict=True)):
        mine = chosen[(chosen >= first_block) & (chosen < first_block + len(own))] - first_block
        first_block += len(own)
        places = (mine[:, None] * _BLOCK + inside).flatten()
        places = places[places < len(each)]
        values.append(each[places])
        owners.append(torch.full_like(places, owner))
        positions.append(places)
    candidates = torch.cat(values)
    best, order = torch.topk(candidates, min(k, len(candidates)), largest=largest)
    return Extremes(best, torch.cat(owners)[order], torch.cat(positions)[order])


def _numbers_of(flat: Sequence[Tensor], found: Extremes) -> Extremes:
    """Leaves out what is no number in the tensors themselves."""
    kept = torch.ones_like(found.owners, dtype=torch.bool)
    for owner, each in enumerate(flat):
        mine = found.owners == owner
        kept[mine] = ~each[found.positions[mine]].isnan()
    return Extremes(found.values[kept], found.owners[kept], found.positions[kept])


def top_indices(flat: Tensor, k: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """Values and positions of the k most extreme elements of a 1-d tensor, most extreme first.

    Elements that are not a number are left out, so fewer than k may be answered.
    """
    found = top_of_several([flat], k, largest=largest)
    return found.values.to(flat.dtype), found.positions


def top_of_tensors(
    tensors: Sequence[Tensor], k: int, *, largest: bool
) -> tuple[Tensor, list[tuple[int, tuple[int, ...]]]]:
    """The k most extreme elements of several tensors together, most extreme first.

    Values of shape (k,), and for each its tensor's position in the list and its index in it.
    """
    found = top_of_several(tensors, k, largest=largest)
    return found.values, [
        (owner, _unravel(position, tuple(tensors[owner].shape)))
        for owner, position in zip(found.owners.tolist(), found.positions.tolist(), strict=True)
    ]


def _unravel(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    indices: list[int] = []
    for size in reversed(shape):
        position, index = divmod(position, size)
        indices.append(index)
    return tuple(reversed(indices))
