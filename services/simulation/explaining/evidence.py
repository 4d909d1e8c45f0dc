"""What an explainer sees of a record: nothing that an explanation is calibrated or scored on."""

from __future__ import annotations

from dataclasses import dataclass

from services.simulation.scoring.labeled_sequences import LabeledSequences, Tokens
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs
from shared.formats.records import interleaved_split

_TOP_SPLITS = 4
_RANDOM_SPLITS = 3


@dataclass(frozen=True, eq=False)
class TokenEvidence:
    """A component by token: its train split, and sequences that are in no split."""

    train: LabeledSequences
    """Of the top sequences, strongest first."""
    others: LabeledSequences
    """Of the random samples by quantile, as far as no split holds them."""
    dataset: str = ""

    @classmethod
    def from_record(
        cls,
        top: LabeledSequences,
        random: LabeledSequences,
        quantiles: LabeledSequences,
        dataset: str,
    ) -> TokenEvidence:
        """The train split of a record, as `ScoringSplit.from_record` interleaves it.

        A sequence that another split holds too is left out.
        """
        train = top.take(interleaved_split(range(len(top)), 0, _TOP_SPLITS))
        kept, others = _unseen(top.tokens, random.tokens, train.tokens, quantiles.tokens)
        return cls(train.take(kept), quantiles.take(others), dataset)


@dataclass(frozen=True, eq=False)
class TokenPairEvidence:
    """A component by token pair: its train split, and sequences that are in no split."""

    train: LabeledTokenPairs
    others: LabeledTokenPairs
    dataset: str = ""

    @classmethod
    def from_record(
        cls,
        top: LabeledTokenPairs,
        random: LabeledTokenPairs,
        quantiles: LabeledTokenPairs,
        dataset: str,
    ) -> TokenPairEvidence:
        """As `TokenEvidence.from_record`."""
        train = top.take(interleaved_split(range(len(top)), 0, _TOP_SPLITS))
        kept, others = _unseen(top.tokens, random.tokens, train.tokens, quantiles.tokens)
        return cls(train.take(kept), quantiles.take(others), dataset)


Evidence = TokenEvidence | TokenPairEvidence


def _unseen(
    top: tuple[Tokens, ...],
    random: tuple[Tokens, ...],
    train: tuple[Tokens, ...],
    quantiles: tuple[Tokens, ...],
) -> tuple[list[int], list[int]]:
    """Positions in `train` and in `quantiles` of sequences that no other split holds, each once."""
    held_out = {
        tokens
        for split in range(1, _TOP_SPLITS)
        for tokens in interleaved_split(top, split, _TOP_SPLITS)
    }
    for split in range(_RANDOM_SPLITS):
        held_out.update(interleaved_split(random, split, _RANDOM_SPLITS))
    seen = set(held_out)
    kept: list[list[int]] = []
    for sequences in (train, quantiles):
        positions = []
        for position, tokens in enumerate(sequences):
            if tokens not in seen:
                seen.add(tokens)
                positions.append(position)
        kept.append(positions)
    return kept[0], kept[1]
