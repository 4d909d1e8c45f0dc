"""Vocabulary entries scored for nodes: what their writes promote, and what makes them read more.

A node's scores are those of a direction of length 1 times a factor. Directions repeat: a neuron's
or latent's does not depend on the token, a head's not on the query. Each is projected on the
vocabulary once; those that only the model's weights determine are remembered for later requests.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.scalars.answers.node_lists import NodeList
from services.scalars.vocabulary.remembered_lists import RememberedLists
from services.scalars.vocabulary.vocabulary_lists import TokenLists, VocabularyLists, VocabularySide

Column = NDArray[np.int64]
_Number = TypeVar("_Number", bound=np.generic)


class TokenScoring(StrEnum):
    """How vocabulary entries are scored for nodes."""

    UPVOTED_OUTPUT_TOKENS = "upvoted_output_tokens"
    INPUT_TOKENS_THAT_UPVOTE_MLP = "input_tokens_that_upvote_mlp"
    INPUT_TOKENS_THAT_UPVOTE_ATTN_Q = "input_tokens_that_upvote_attn_q"
    INPUT_TOKENS_THAT_UPVOTE_ATTN_K = "input_tokens_that_upvote_attn_k"

    @property
    def side(self) -> VocabularySide:
        """Which way the nodes' directions meet the vocabulary."""
        writes = self is TokenScoring.UPVOTED_OUTPUT_TOKENS
        return VocabularySide.OUTPUT if writes else VocabularySide.INPUT


@dataclass(frozen=True)
class ScoredTokensSpec:
    """How to score, how many of the best and worst entries to list, for which top nodes."""

    scoring: TokenScoring
    count: int
    depends_on: str


@dataclass(frozen=True, eq=False)
class ScoredTokens:
    """For each of n nodes the entries with the largest and the smallest scores.

    Ids and scores have the shape (n, k). `top` begins with the largest, `bottom` with the smallest;
    normalised scores are divided by a node's largest absolute score, 0 where that is 0. Nodes where
    `scored` is false have none.
    """

    scored: NDArray[np.bool_]
    top_ids: Column
    top_scores: NDArray[np.float32]
    bottom_ids: Column
    bottom_scores: NDArray[np.float32]

    @property
    def n_bytes(self) -> int:
        """What it keeps in memory."""
        return self.scored.nbytes + 2 * (self.top_ids.nbytes + self.top_scores.nbytes)

    @property
    def scale(self) -> NDArray[np.float32]:
        """The largest absolute score of each node, (n,); 0 where there is none."""
        if not self.top_scores.shape[1]:
            return np.zeros(len(self.scored), dtype=np.float32)
        ends = np.stack([self.top_scores[:, 0], self.bottom_scores[:, 0]])
        scale: NDArray[np.float32] = np.abs(ends).max(axis=0)
        return scale

    def normalized(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores divided by their node's scale."""
        scale = self.scale[:, None]
        return np.divide(scores, scale, out=np.zeros_like(scores), where=scale > 0)


@dataclass(frozen=True, eq=False)
class Directions:
    """The directions of some of a list's nodes: `positions` (m,) in the list.

    `vectors` (m, D) are their directions times any positive number, and `factors` (m,) what scores
    of the direction are multiplied by once it has length 1. Nodes of equal `keys` have the same
    direction; those in which `constant` is set depend on the model's weights alone.
    """

    positions: Column
    keys: Sequence[Hashable]
    vectors: Callable[[Column], Tensor]
    factors: Tensor
    constant: bool


@dataclass(frozen=True, eq=False)
class Scoring:
    """One request for scored tokens, ready to be projected."""

    spec: ScoredTokensSpec
    nodes: NodeList
    directions: Sequence[Directions]


def score(
    requests: Sequence[Scoring],
    vocabulary: VocabularyLists,
    remembered: RememberedLists,
    check: Callable[[], None],
) -> list[ScoredTokens]:
    """Scores the nodes of several requests, with one projection for all that they share."""
    count = min(max((each.spec.count for each in requests), default=0), vocabulary.size)
    known: dict[Hashable, TokenLists] = {}
    missing: dict[VocabularySide, dict[Hashable, Tensor]] = {}
    lasting: set[Hashable] = set()
    for request in requests:
        side = request.spec.scoring.side
        for number, each in enumerate(request.directions):
            first: dict[Hashable, int] = {}
            for index, key in enumerate(each.keys):
                first.setdefault(_key(request, number, each, key), index)
            for key in first:
                found = remembered.get(key, count) if each.constant else None
                if found is not None:
                    known[key] = found
            new = [key for key in first if key not in known]
            waiting = missing.setdefault(side, {})
            new = [key for key in new if key not in waiting]
            if new:
                vectors = each.vectors(np.array([first[key] for key in new], dtype=np.int64))
                waiting.update(zip(new, _unit(vectors), strict=True))
                lasting.update(new if each.constant else ())
    rows = {side: torch.stack(list(each.values())) for side, each in missing.items() if each}
    for side, lists in vocabulary.lists(rows, count, check).items():
        for index, key in enumerate(missing[side]):
            known[key] = lists.row(index)
            if key in lasting:
                remembered.put(key, known[key])
    nothing = vocabulary.of_nothing(count)
    return [_gathered(request, known, nothing) for request in requests]


def _key(request: Scoring, number: int, directions: Directions, key: Hashable) -> Hashable:
    side = request.spec.scoring.side
    # What depends on more than the weights is another direction in every other request.
    return (side, key) if directions.constant else (side, key, id(request), number)


def lengths(vectors: Tensor) -> Tensor:
    """The lengths of rows (m, D), (m,) in float32."""
    scaled, scale = _scaled(vectors)
    found: Tensor = scaled.norm(dim=1) * scale[:, 0]
    return found


def _scaled(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Rows divided by their largest element, and that: of others the squares may all be 0."""
    vectors = vectors.float()
    largest = vectors.abs().amax(dim=1, keepdim=True)
    largest = torch.where(largest == 0, 1.0, largest)
    return vectors / largest, largest


def _unit(vectors: Tensor) -> Tensor:
    """The same directions with length 1; 0 where there is no direction."""
    unit, _ = _scaled(vectors)
    length = unit.norm(dim=1, keepdim=True)
    unit = unit / torch.where(length == 0, 1.0, length)
    # A direction that is no number has no scores; elsewhere it would spread over its neighbours.
    return torch.where(unit.isfinite().all(dim=1, keepdim=True), unit, 0.0)


def _gathered(
    request: Scoring, known: dict[Hashable, TokenLists], nothing: TokenLists
) -> ScoredTokens:
    n = len(request.nodes)
    lists = [
        known[_key(request, number, each, key)]
        for number, each in enumerate(request.directions)
        for key in each.keys
    ]
    count = min((request.spec.count, *(each.top_ids.shape[1] for each in lists)))
    scored = np.zeros(n, dtype=bool)
    ids = np.zeros((2, n, count), dtype=np.int64)
    scores = np.zeros((2, n, count), dtype=np.float32)
    if not lists:
        return ScoredTokens(scored, ids[0], scores[0], ids[1], scores[1])
    positions = np.concatenate([each.positions for each in request.directions])
    factors = torch.cat([each.factors for each in request.directions]).float().cpu().numpy()
    finite = np.isfinite(factors)
    scored[positions] = finite
    factors = np.where(finite, factors, 0)[:, None]
    # What a direction promotes is what its opposite suppresses.
    turned = factors < 0
    all_ids = _stacked([(each.top_ids, each.bottom_ids) for each in lists], count)
    all_scores = _stacked([(each.top_scores, each.bottom_scores) for each in lists], count)
    ids[:, positions] = np.where(turned, all_ids[::-1], all_ids)
    silent = positions[factors[:, 0] == 0]
    ids[:, silent] = np.stack([nothing.top_ids[:, :count], nothing.bottom_ids[:, :count]])
    # Adding 0 turns -0 into 0.
    scores[:, positions] = np.where(turned, all_scores[::-1], all_scores) * factors + 0.0
    return ScoredTokens(scored, ids[0], scores[0], ids[1], scores[1])


def _stacked(
    rows: Sequence[tuple[NDArray[_Number], NDArray[_Number]]], count: int
) -> NDArray[_Number]:
    """Top and bottom lists of several directions, each (1, k), as (2, n, count)."""
    return np.stack([np.concatenate([each[side][:, :count] for each in rows]) for side in (0, 1)])
