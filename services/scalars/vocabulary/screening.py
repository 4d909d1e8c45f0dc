"""Finding the vocabulary entries of directions with half of the arithmetic, provably.

All scores are computed in bfloat16 first, which processors that know it do several times as fast.
Rounding changes a score u·d by no more than |δu||d'| + |u||δd|, where u and d are an entry's row
and the direction, δu and δd what rounding took off them, and d' the rounded direction
(Cauchy-Schwarz), and the rounding of sums and of the result adds a little. So an entry whose
rounded score plus that is below the k-th best rounded score less that can't be among the k best.
What remains, some tens of entries a direction, is computed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.model.weights import lasting

BLOCK = 64
_CHUNK = 32 * BLOCK
_ROUNDING = 2.0**-8
"""Largest relative error of rounding to bfloat16."""
_MOST_BLOCKS = 96
"""A direction with more blocks to look into is better computed exactly throughout."""
_ROWS_AT_ONCE = 256
_BLOCKS_AT_ONCE = 2048

Found = tuple[NDArray[np.int64], NDArray[np.float32]]


def pays(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32; only processors are asked."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and known is not None and bool(known())


@dataclass(frozen=True, eq=False)
class RoundedMatrix:
    """A matrix (V, D) and its rounded copy, with lengths of blocks of rows and of their rounding.

    `lengths` and `errors` have the shape (number of blocks, 1): the largest of each block.
    """

    exact: Tensor
    rounded: Tensor
    lengths: Tensor
    errors: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> RoundedMatrix:
        """Rounds a float32 matrix."""
        with lasting():
            rounded = matrix.to(torch.bfloat16)
            lengths, errors = matrix.new_empty(2, len(matrix))
            # In one place: small results between large ones would leave holes in the memory.
            difference = matrix.new_empty(_CHUNK, matrix.shape[1])
            for first in range(0, len(matrix), _CHUNK):
                some = slice(first, first + _CHUNK)
                rows = matrix[some]
                lost = torch.sub(rows, rounded[some], out=difference[: len(rows)])
                torch.linalg.vector_norm(rows, dim=1, out=lengths[some])
                torch.linalg.vector_norm(lost, dim=1, out=errors[some])
            return cls(matrix, rounded, _block_maxima(lengths), _block_maxima(errors))


def _block_maxima(values: Tensor) -> Tensor:
    whole = len(values) // BLOCK * BLOCK
    parts = [values[:whole].view(-1, BLOCK).amax(dim=1)]
    if whole < len(values):
        parts.append(values[whole:].amax()[None])
    return torch.cat(parts)[:, None]


def screened(
    matrix: RoundedMatrix, directions: Tensor, count: int, excluded: Tensor
) -> tuple[Tensor, Found, Found]:
    """The `count` largest and smallest products of the rows with each direction (N, D).

    Answers which directions (a mask of N) could be screened, and for these alone, in order, ids and
    products of the largest and of the smallest, each (number of them, count), the most extreme
    first. Rows of `excluded` take no part. `count` is far below the number of blocks of 64 rows.
    """
    columns = directions.to(torch.bfloat16).T.contiguous()
    scores, largest, smallest = block_extrema(matrix.rounded, columns, excluded)
    largest, smallest = largest.float(), smallest.float()
    rounded = directions.to(torch.bfloat16).float()
    lengths = directions.norm(dim=1)
    bound = (
        matrix.errors * rounded.norm(dim=1)
        + matrix.lengths * (directions - rounded).norm(dim=1)
        # Sums are made in float32; this is many times what they lose.
        + matrix.lengths * lengths * (directions.shape[1] * 2.0**-22)
    )
    # The products themselves were rounded as well.
    magnitude = torch.maximum(largest.abs(), smallest.abs())
    # The extrema of a block without any row that takes part are infinite.
    magnitude = torch.where(magnitude.isfinite(), magnitude, 0.0)
    bound = bound + _ROUNDING * (1 + 2 * _ROUNDING) * magnitude
    ends = []
    screens = torch.ones(len(directions), dtype=torch.bool, device=directions.device)
    for sign, extrema in ((1.0, largest), (-1.0, -smallest)):
        least = torch.topk(extrema - bound, count, dim=0).values[-1]
        blocks = extrema + bound >= least
        screens &= blocks.sum(dim=0) <= _MOST_BLOCKS
        ends.append((sign, least, blocks))
    screens &= lengths > 0
    top, bottom = (
        _exact(matrix, directions, scores, bound, sign, least, blocks & screens, excluded, count)
        for sign, least, blocks in ends
    )
    return screens, top, bottom


def block_extrema(
    matrix: Tensor, columns: Tensor, excluded: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Products (V, N) of a matrix with directions (D, N), and the extrema of blocks of 64 rows.

    Rows of `excluded`, in ascending order, take no part in the extrema, and their products are not
    to be used. The matrix is worked through in chunks whose products stay in the cache.
    """
    size, n = len(matrix), columns.shape[1]
    scores = matrix.new_empty(size, n)
    largest, smallest = [], []
    for first in range(0, size, _CHUNK):
        chunk = torch.mm(
            matrix[first : first + _CHUNK], columns, out=scores[first : first + _CHUNK]
        )
        left_out = excluded[(excluded >= first) & (excluded < first + _CHUNK)] - first
        whole = len(chunk) // BLOCK * BLOCK
        parts = [
            part
            for part in (chunk[:whole].view(-1, BLOCK, n), chunk[whole:][None])
            if part.shape[0] and part.shape[1]
        ]
        chunk[left_out] = float("-inf")
        largest += [part.amax(dim=1) for part in parts]
        chunk[left_out] = float("inf")
        smallest += [part.amin(dim=1) for part in parts]
    return scores, torch.cat(largest), torch.cat(smallest)


def _exact(
    matrix: RoundedMatrix,
    directions: Tensor,
    scores: Tensor,
    bound: Tensor,
    sign: float,
    least: Tensor,
    blocks: Tensor,
    excluded: Tensor,
    count: int,
) -> Found:
    """The best of what the blocks named hold, by exact products."""
    listed = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    listed[excluded] = False
    inside = torch.arange(BLOCK, device=scores.device)
    entries, columns_of_entries = [], []
    # In parts: written out, the rows of all blocks would take more than the scores do.
    for block, column in zip(
        *(torch.split(each, _BLOCKS_AT_ONCE) for each in blocks.nonzero(as_tuple=True)),
        strict=True,
    ):
        rows = block[:, None] * BLOCK + inside
        known = rows < len(scores)
        rows.clamp_(max=len(scores) - 1)
        rounded = scores[rows, column[:, None]].float() * sign
        possible = rounded + bound[block, column][:, None] >= least[column][:, None]
        possible &= known & listed[rows]
        entries.append(rows[possible])
        columns_of_entries.append(column[:, None].expand_as(rows)[possible])
    entry, column = torch.cat(entries), torch.cat(columns_of_entries)
    products = directions.new_empty(len(entry))
    for start in range(0, len(entry), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        rows_of_entries = matrix.exact[entry[some]]
        torch.linalg.vecdot(rows_of_entries, directions[column[some]], out=products[some])
    ids, values = entry.cpu().numpy(), products.cpu().numpy()
    columns = column.cpu().numpy()
    order = np.lexsort((-sign * values, columns))
    wanted = blocks.any(dim=0).nonzero()[:, 0].cpu().numpy()
    # Each direction has at least `count` possible entries: the best of `count` blocks.
    first = np.searchsorted(columns[order], wanted)
    chosen = order[first[:, None] + np.arange(count)]
    return ids[chosen], values[chosen]
