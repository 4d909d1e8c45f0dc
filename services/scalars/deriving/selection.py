"""The most extreme elements of large tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 64
_MINIMUM_FOR_BLOCKS = 1 << 14


def top_indices(flat: Tensor, k: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """Values and positions of the k most extreme elements of a 1-d tensor, most extreme first.

    Elements that are not a number are left out, so fewer than k may be answered. On a long tensor
    the extrema of blocks are compared first and only the best blocks are looked into: no element
    outside the k best blocks can be among the k best elements. Which of several equal elements
    is answered is not specified.
    """
    length = flat.numel()
    if k <= 0 or length == 0:
        return flat.new_empty(0), torch.empty(0, dtype=torch.int64, device=flat.device)
    if length >= _MINIMUM_FOR_BLOCKS and k * _BLOCK * 2 <= length:
        found = _top_of_blocks(flat, k, largest=largest)
        if found is not None:
            return found
    worst = float("-inf") if largest else float("inf")
    comparable = torch.where(flat.isnan(), worst, flat)
    values, positions = torch.topk(comparable, min(k, length), largest=largest)
    kept = ~flat[positions].isnan()
    return values[kept], positions[kept]


def _top_of_blocks(flat: Tensor, k: int, *, largest: bool) -> tuple[Tensor, Tensor] | None:
    """The same by blocks; None where the tensor holds what is not a number."""
    length = flat.numel()
    whole = length // _BLOCK * _BLOCK
    blocks = flat[:whole].view(-1, _BLOCK)
    extrema = blocks.amax(dim=1) if largest else blocks.amin(dim=1)
    # An extremum is not a number as soon as one element of its block is not.
    if bool(extrema.isnan().any()) or bool(flat[whole:].isnan().any()):
        return None
    best = torch.topk(extrema, k, largest=largest).indices
    inside = torch.arange(_BLOCK, device=flat.device)
    rest = torch.arange(whole, length, device=flat.device)
    candidates = torch.cat([(best[:, None] * _BLOCK + inside).flatten(), rest])
    values, chosen = torch.topk(flat[candidates], k, largest=largest)
    return values, candidates[chosen]


def top_of_tensors(
    tensors: Sequence[Tensor], k: int, *, largest: bool
) -> tuple[Tensor, list[tuple[int, tuple[int, ...]]]]:
    """The k most extreme elements of several tensors together, most extreme first.

    Values of shape (k,), and for each its tensor's position in the list and its index in it.
    """
    found = [top_indices(tensor.reshape(-1), k, largest=largest) for tensor in tensors]
    if not found:
        return torch.empty(0), []
    values, order = top_indices(torch.cat([values for values, _ in found]), k, largest=largest)
    owners = torch.cat(
        [torch.full_like(positions, which) for which, (_, positions) in enumerate(found)]
    )[order].tolist()
    flat = torch.cat([positions for _, positions in found])[order].tolist()
    return values, [
        (which, _unravel(position, tuple(tensors[which].shape)))
        for which, position in zip(owners, flat, strict=True)
    ]


def _unravel(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    indices: list[int] = []
    for size in reversed(shape):
        position, index = divmod(position, size)
        indices.append(index)
    return tuple(reversed(indices))
