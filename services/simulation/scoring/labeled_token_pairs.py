"""Sequences with a true activation a token pair: what heads are explained and scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.errors import InvalidInput
from services.simulation.scoring.labeled_sequences import Tokens, checked_ends
from shared.formats.records import interleaved_split
from shared.formats.token_pairs import coordinates, row_lengths

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabeledTokenPairs:
    """Sequences with the activations of their token pairs, which may not be finite.

    `activations[i]` holds the rows of sequence i one after another; row r, the attending token, has
    min(r + 1, caps[i]) values, of the attended-to tokens 0, 1, ... (see
    `shared.formats.token_pairs`).
    """

    tokens: tuple[Tokens, ...] = ()
    activations: tuple[FloatArray, ...] = ()
    caps: tuple[int, ...] = ()

    @classmethod
    def from_columns(
        cls,
        tokens: Sequence[str],
        lengths: Sequence[int],
        caps: Sequence[int],
        activations: FloatArray,
        field: str,
    ) -> LabeledTokenPairs:
        """From sequences that lie one after the other; `field` is their name in errors.

        Raises:
            InvalidInput: the columns don't agree in length.
        """
        if len(caps) != len(lengths):
            raise InvalidInput(
                f"{field}.attended_to_caps has {len(caps)} values for {len(lengths)} sequences",
                field=f"{field}.attended_to_caps",
                reason="LENGTHS_DIFFER",
            )
        ends = checked_ends(lengths, len(tokens), field)
        starts = [0, *ends[:-1]]
        counts = [
            int(row_lengths(length, cap).sum()) for length, cap in zip(lengths, caps, strict=True)
        ]
        if sum(counts) != len(activations):
            raise InvalidInput(
                f"{field}.activations has {len(activations)} values where the sequences have "
                f"{sum(counts)} token pairs",
                field=f"{field}.activations",
                reason="LENGTHS_DIFFER",
            )
        parts = np.split(activations, np.cumsum(counts)[:-1]) if counts else []
        return cls(
            tuple(tuple(tokens[a:b]) for a, b in zip(starts, ends, strict=False)),
            tuple(parts),
            tuple(int(cap) for cap in caps),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __add__(self, other: LabeledTokenPairs) -> LabeledTokenPairs:
        return LabeledTokenPairs(
            self.tokens + other.tokens,
            self.activations + other.activations,
            self.caps + other.caps,
        )

    def take(self, positions: Sequence[int]) -> LabeledTokenPairs:
        """The sequences at these positions."""
        return LabeledTokenPairs(
            tuple(self.tokens[p] for p in positions),
            tuple(self.activations[p] for p in positions),
            tuple(self.caps[p] for p in positions),
        )

    def coordinates(self, position: int) -> tuple[IntArray, IntArray]:
        """Attending and attended-to token of each activation of the sequence at `position`."""
        return coordinates(len(self.tokens[position]), self.caps[position])


@dataclass(frozen=True, eq=False)
class TokenPairSplit:
    """The validation split of a head's record; nothing is calibrated."""

    scored: LabeledTokenPairs
    dataset: str = ""
    """Path of the dataset that the record came from."""

    @classmethod
    def from_record(
        cls, top: LabeledTokenPairs, random: LabeledTokenPairs, dataset: str
    ) -> TokenPairSplit:
        """Interleaved as in `ScoringSplit.from_record`."""
        scored = top.take(interleaved_split(range(len(top)), 2, 4))
        return cls(scored + random.take(interleaved_split(range(len(random)), 1, 3)), dataset)

    def limited(self, max_sequences: int) -> TokenPairSplit:
        """At most so many sequences, evenly spread over all; 0 means all."""
        count = len(self.scored)
        if not 0 < max_sequences < count:
            return self
        positions = [(2 * i + 1) * count // (2 * max_sequences) for i in range(max_sequences)]
        return TokenPairSplit(self.scored.take(positions), self.dataset)
