"""The vocabulary entries that many directions point to most, best and worst, in one pass.

This is where a debugger page spends most of its time: hundreds of directions times the whole
vocabulary. The vocabulary is worked through in chunks that stay in the cache, and of a direction's
scores only those in its best blocks are looked at. Where it pays, they are screened in bfloat16.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.model.family import SubjectModel
from services.scalars.model.weights import lasting
from services.scalars.vocabulary.screening import (
    BLOCK,
    RoundedMatrix,
    block_extrema,
    pays,
    screened,
)

_Lists = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]
_SCORES_BYTES = 96 << 20
"""Most memory that the scores of one pass take."""
_SCREENED_DIRECTIONS = 16
"""Fewer directions are not worth a pass of their own over the vocabulary."""


class VocabularySide(StrEnum):
    """Which way a direction meets the vocabulary."""

    OUTPUT = "output"
    """What writing it does to the logits: times the final norm's gain and the unembedding, less the
    mean over the vocabulary."""
    INPUT = "input"
    """What embeddings it reads."""


@dataclass(frozen=True)
class TokenLists:
    """For each of N directions the entries with the largest and the smallest scores.

    Ids and scores have the shape (N, k); `top` begins with the largest, `bottom` with the smallest.
    """

    top_ids: NDArray[np.int64]
    top_scores: NDArray[np.float32]
    bottom_ids: NDArray[np.int64]
    bottom_scores: NDArray[np.float32]

    @property
    def n_bytes(self) -> int:
        """What it keeps in memory."""
        return 2 * (self.top_ids.nbytes + self.top_scores.nbytes)

    def part(self, first: int, stop: int) -> TokenLists:
        """Those of some directions."""
        return TokenLists(
            self.top_ids[first:stop],
            self.top_scores[first:stop],
            self.bottom_ids[first:stop],
            self.bottom_scores[first:stop],
        )

    def row(self, index: int) -> TokenLists:
        """Those of one direction, (1, k), in memory of their own."""
        one = self.part(index, index + 1)
        return TokenLists(
            one.top_ids.copy(),
            one.top_scores.copy(),
            one.bottom_ids.copy(),
            one.bottom_scores.copy(),
        )


class VocabularyLists:
    """Finds the best and worst entries of directions of a model's residual stream.

    Entries whose ids are among `excluded` are never listed.
    """

    def __init__(self, model: SubjectModel, excluded: Collection[int] = ()) -> None:
        self._model = model
        with lasting():
            self._excluded = torch.tensor(
                sorted(set(excluded)), dtype=torch.int64, device=model.device
            )
        self._mean_unembedding: Tensor | None = None
        self._rounded: dict[int, RoundedMatrix] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Entries of the vocabulary that may be listed."""
        return self._model.shape.vocab_size - len(self._excluded)

    def n_bytes(self, directions: int) -> int:
        """Memory that finding the lists of so many directions takes, from above."""
        vocabulary, width = self.size, self._model.shape.residual_stream_channels
        at_once = min(directions, self._at_once())
        return 4 * (2 * at_once * vocabulary // BLOCK + at_once * vocabulary + directions * width)

    def lists(
        self,
        directions: dict[VocabularySide, Tensor],
        count: int,
        check: Callable[[], None] = lambda: None,
    ) -> dict[VocabularySide, TokenLists]:
        """Lists of `count` entries, or of all where there are fewer, of directions (N, D).

        Both sides are found in one pass where the model's embedding is its unembedding too.
        `check` is called now and then, and may raise.
        """
        model = self._model
        prepared: dict[VocabularySide, tuple[Tensor, Tensor]] = {}
        for side, rows in directions.items():
            if side is VocabularySide.INPUT:
                prepared[side] = (rows, torch.zeros(len(rows), device=rows.device))
            else:
                scaled = rows * model.write.final_norm_gain
                prepared[side] = (scaled, scaled @ self._mean())
        output, embedding = model.write.unembedding, model.token_embedding
        tied = output.data_ptr() == embedding.data_ptr() and output.shape == embedding.shape
        if tied and len(prepared) == 2:
            rows = torch.cat([rows for rows, _ in prepared.values()])
            offsets = torch.cat([offsets for _, offsets in prepared.values()])
            both = self._of_matrix(output, rows, offsets, count, check)
            found, first = {}, 0
            for side, (own, _) in prepared.items():
                found[side] = both.part(first, first + len(own))
                first += len(own)
            return found
        return {
            side: self._of_matrix(
                output if side is VocabularySide.OUTPUT else embedding, *each, count, check
            )
            for side, each in prepared.items()
        }

    def of_nothing(self, count: int) -> TokenLists:
        """The lists of one direction that is 0, (1, k): which of all equal entries they hold is
        what the same selection answers in the reference implementation.
        """
        scores = torch.zeros(self._model.shape.vocab_size)
        scores[self._excluded.cpu()] = float("nan")
        listed = torch.nonzero(scores == 0)[:, 0]
        count = min(count, len(listed))
        nothing = np.zeros((1, count), dtype=np.float32)
        ids = [
            listed[torch.topk(scores[listed], count, largest=largest).indices][None].numpy()
            for largest in (True, False)
        ]
        return TokenLists(ids[0], nothing, ids[1], nothing)

    def _mean(self) -> Tensor:
        """The mean of all rows of the unembedding, (D,)."""
        if self._mean_unembedding is None:
            with lasting():
                self._mean_unembedding = self._model.write.unembedding.float().mean(dim=0)
        return self._mean_unembedding

    def _at_once(self) -> int:
        return max(1, _SCORES_BYTES // (4 * self._model.shape.vocab_size))

    def _of_matrix(
        self,
        matrix: Tensor,
        directions: Tensor,
        offsets: Tensor,
        count: int,
        check: Callable[[], None],
    ) -> TokenLists:
        parts = []
        for first in range(0, len(directions), self._at_once()):
            check()
            some = slice(first, first + self._at_once())
            parts.append(self._extremes(matrix, directions[some], offsets[some], count))
        if not parts:
            nothing = np.empty((0, 0), dtype=np.int64), np.empty((0, 0), dtype=np.float32)
            return TokenLists(*nothing, *nothing)
        columns = zip(*parts, strict=True)
        return TokenLists(*(np.concatenate(column) for column in columns))

    def _extremes(self, matrix: Tensor, directions: Tensor, offsets: Tensor, count: int) -> _Lists:
        rounded = self._rounded_matrix(matrix)
        if (
            rounded is None
            or len(directions) < _SCREENED_DIRECTIONS
            or 8 * count * BLOCK > len(matrix)
        ):
            return self._exact(matrix, directions, offsets, count)
        screens, (top_ids, top), (bottom_ids, bottom) = screened(
            rounded, directions, count, self._excluded
        )
        below = offsets[screens].cpu().numpy()[:, None]
        found = top_ids, top - below, bottom_ids, bottom - below
        if bool(screens.all()):
            return found
        rest = self._exact(matrix, directions[~screens], offsets[~screens], count)
        place = np.argsort(np.r_[_places(screens), _places(~screens)])
        ids, scores, other_ids, other_scores = (
            np.concatenate([one, other])[place] for one, other in zip(found, rest, strict=True)
        )
        return ids, scores, other_ids, other_scores

    def _exact(self, matrix: Tensor, directions: Tensor, offsets: Tensor, count: int) -> _Lists:
        return extreme_entries(matrix, directions, offsets, count, self._excluded)

    def _rounded_matrix(self, matrix: Tensor) -> RoundedMatrix | None:
        """What directions are screened with; None where screening doesn't pay."""
        if matrix.dtype is not torch.float32 or not pays(matrix.device):
            return None
        with self._lock:
            found = self._rounded.get(matrix.data_ptr())
            if found is None:
                found = self._rounded[matrix.data_ptr()] = RoundedMatrix.of(matrix)
            return found


def _places(mask: Tensor) -> NDArray[np.int64]:
    """Where a mask is set."""
    places: NDArray[np.int64] = mask.nonzero()[:, 0].cpu().numpy()
    return places


def extreme_entries(
    matrix: Tensor, directions: Tensor, offsets: Tensor, count: int, excluded: Tensor
) -> _Lists:
    """Ids of the rows with the largest and the smallest products with directions (N, D).

    Each (N, count), with the products less `offsets`; rows of `excluded` take no part.
    """
    columns = directions.T.to(matrix.dtype).contiguous()
    scores, largest, smallest = block_extrema(matrix, columns, excluded)
    count = min(count, len(matrix) - len(excluded))
    listed = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    listed[excluded] = False
    top_ids, top = _best_of_blocks(scores, largest, listed, count, largest=True)
    bottom_ids, bottom = _best_of_blocks(scores, smallest, listed, count, largest=False)
    below = offsets[:, None]
    return (
        top_ids.cpu().numpy(),
        (top.float() - below).cpu().numpy(),
        bottom_ids.cpu().numpy(),
        (bottom.float() - below).cpu().numpy(),
    )


def _best_of_blocks(
    scores: Tensor, extrema: Tensor, listed: Tensor, count: int, *, largest: bool
) -> tuple[Tensor, Tensor]:
    """Ids and scores, (N, count), given all scores (V, N) and the extrema of their blocks."""
    blocks = torch.topk(extrema, min(count, len(extrema)), dim=0, largest=largest).indices
    inside = torch.arange(BLOCK, device=scores.device)
    rows = (blocks[:, None] * BLOCK + inside[:, None]).flatten(0, 1)
    beyond = rows >= len(scores)
    rows = rows.clamp(max=len(scores) - 1)
    candidates = scores.gather(0, rows)
    candidates[beyond | ~listed[rows]] = float("-inf") if largest else float("inf")
    best, order = torch.topk(candidates.T.contiguous(), count, dim=1, largest=largest)
    return rows.T.gather(1, order), best
