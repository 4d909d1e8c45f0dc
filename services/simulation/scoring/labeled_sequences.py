"""Sequences with true activations: what an explanation is calibrated on and scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.simulation.errors import InvalidInput, as_vector, require_same_length
from shared.formats.records import interleaved_split

FloatArray = NDArray[np.float64]
Tokens = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LabeledSequences:
    """Sequences, each with its tokens and a true activation a token, which may not be finite."""

    tokens: tuple[Tokens, ...] = ()
    activations: tuple[FloatArray, ...] = ()

    @classmethod
    def from_columns(
        cls, tokens: Sequence[str], lengths: Sequence[int], activations: ArrayLike, field: str
    ) -> LabeledSequences:
        """From sequences that lie one after the other; `field` is their name in errors.

        Raises:
            InvalidInput: the columns don't agree in length, or something isn't a number.
        """
        values = as_vector(activations, f"{field}.activations")
        require_same_length(len(tokens), f"{field}.tokens", len(values), f"{field}.activations")
        ends = checked_ends(lengths, len(tokens), field)
        spans = list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []
        return cls(
            tokens=tuple(tuple(tokens[start:end]) for start, end in spans),
            activations=tuple(values[start:end] for start, end in spans),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __add__(self, other: LabeledSequences) -> LabeledSequences:
        return LabeledSequences(self.tokens + other.tokens, self.activations + other.activations)

    def take(self, positions: Sequence[int]) -> LabeledSequences:
        """The sequences at these positions."""
        return LabeledSequences(
            tuple(self.tokens[p] for p in positions), tuple(self.activations[p] for p in positions)
        )


def checked_ends(lengths: Sequence[int], total: int, field: str) -> list[int]:
    """Where each sequence ends; InvalidInput where the lengths don't add up to `total`."""
    ends: list[int] = np.cumsum(np.asarray(lengths, dtype=np.int64)).tolist()
    if (ends[-1] if ends else 0) != total:
        raise InvalidInput(
            f"{field}.sequence_lengths add up to {ends[-1] if ends else 0}, but there are {total} "
            "tokens",
            field=f"{field}.sequence_lengths",
            reason="LENGTHS_DIFFER",
        )
    return ends


@dataclass(frozen=True, eq=False)
class ScoringSplit:
    """What a score is computed from: no sequence is in both."""

    calibration: LabeledSequences
    scored: LabeledSequences
    dataset: str = ""
    """Path of the dataset that a record came from; empty where sequences came with a request."""

    @classmethod
    def from_record(
        cls, top: LabeledSequences, random: LabeledSequences, dataset: str
    ) -> ScoringSplit:
        """The calibration and the validation split of a record's top and random sequences.

        Splits are interleaved, and as large as they can be: the top sequences over train,
        calibration, validation and test, the random ones over the last three. A random sample may
        hold a top sequence again: what is scored is scored once, and takes no part in the
        calibration.
        """

        def split(index: int) -> LabeledSequences:
            of_top = interleaved_split(range(len(top)), index, 4)
            of_random = interleaved_split(range(len(random)), index - 1, 3)
            return top.take(of_top) + random.take(of_random)

        calibration, scored = split(1), split(2)
        first = {tokens: position for position, tokens in reversed([*enumerate(scored.tokens)])}
        scored = scored.take(sorted(first.values()))
        held_out = set(scored.tokens)
        kept = [p for p, tokens in enumerate(calibration.tokens) if tokens not in held_out]
        return cls(calibration.take(kept), scored, dataset)

    @classmethod
    def from_request(cls, calibration: LabeledSequences, scored: LabeledSequences) -> ScoringSplit:
        """Sequences that a caller chose.

        Raises:
            InvalidInput: a sequence is to be calibrated on and scored too.
        """
        own = set(calibration.tokens)
        for position, tokens in enumerate(scored.tokens):
            if tokens in own:
                raise InvalidInput(
                    f"sequences.scored_sequences has a sequence, at position {position}, that the "
                    "calibration is fitted on; a score needs sequences of its own",
                    field="sequences.scored_sequences",
                    reason="SCORED_SEQUENCE_IN_CALIBRATION",
                )
        return cls(calibration, scored)

    def limited(self, max_sequences: int) -> ScoringSplit:
        """At most so many scored sequences, evenly spread over all; 0 means all."""
        count = len(self.scored)
        if not 0 < max_sequences < count:
            return self
        positions = [(2 * i + 1) * count // (2 * max_sequences) for i in range(max_sequences)]
        return ScoringSplit(self.calibration, self.scored.take(positions), self.dataset)
