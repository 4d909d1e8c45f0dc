"""What a judge is asked: sequences and marked tokens, with the right answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from services.simulation.errors import InvalidInput
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit, Tokens
from shared.errors import FailedPrecondition

FloatArray = NDArray[np.float64]

DEFAULT_MAX_JUDGEMENTS = 20

ACTIVE_SHARE = 0.5
"""Share of the largest activation from which a sequence, or a token of one, counts as active."""


class JudgingMethod(StrEnum):
    """What is judged."""

    DETECTION = "detection"
    """Whether a sequence activates the component."""
    FUZZING = "fuzzing"
    """Whether the marked tokens of a sequence are active ones."""


@dataclass(frozen=True, slots=True)
class Question:
    """A sequence, which of its tokens are marked, and the right answer."""

    sequence: int
    """Position among the sequences that are scored."""
    tokens: Tokens
    marked: tuple[int, ...]
    """Ascending; empty where the whole sequence is asked about."""
    label: bool


def questions(
    split: ScoringSplit,
    method: JudgingMethod,
    max_judgements: int,
    low: float,
    seed: int,
    max_sequences: int = 0,
) -> list[Question]:
    """At most `max_judgements` questions, as many of either label.

    With M the largest finite activation of the split, a sequence or token is active from 0.5 M
    on. One that isn't active, and is up to `low` M, is not active; what lies between is not asked
    about, nor is a sequence with an activation that isn't finite. With `max_sequences` only so many
    sequences are asked about; M stays that of all.

    Raises:
        InvalidInput: `max_judgements` is less than 2, one of either label.
        FailedPrecondition: nothing is active, or there is no question of one of the labels.
    """
    if max_judgements < 2:
        raise InvalidInput(
            f"max_judgements is {max_judgements}; at least 2 are needed, one with either answer",
            field="max_judgements",
            reason="OUT_OF_RANGE",
        )
    largest = _largest(split.calibration, split.scored)
    split = split.limited(max_sequences)
    finite = [
        position
        for position, values in enumerate(split.scored.activations)
        if len(values) and np.isfinite(values).all()
    ]
    rng = np.random.default_rng(seed)
    if largest <= 0:
        raise _none(split, "no activation above 0", "nothing that is active can be asked about")
    if method is JudgingMethod.DETECTION:
        yes, no = _detection(split.scored, finite, largest, low)
    else:
        yes, no = _fuzzing(split.scored, finite, largest, low, rng)
    if not yes:
        raise _none(
            split,
            f"no sequence with an activation of {ACTIVE_SHARE} of the largest",
            "nothing that is active can be asked about",
        )
    if not no:
        what = "sequence" if method is JudgingMethod.DETECTION else "token of an active sequence"
        raise _none(
            split,
            f"no {what} that stays at {low:g} of the largest activation",
            "a larger low_activation_threshold allows more",
        )
    return _balanced(yes, no, max_judgements, rng)


def _largest(*parts: LabeledSequences) -> float:
    values = np.concatenate(
        [np.zeros(0), *(values for part in parts for values in part.activations)]
    )
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else 0.0


def _detection(
    sequences: LabeledSequences, positions: Sequence[int], largest: float, low: float
) -> tuple[list[Question], list[Question]]:
    yes, no = [], []
    for position in positions:
        peak = float(sequences.activations[position].max())
        tokens = sequences.tokens[position]
        if peak >= ACTIVE_SHARE * largest:
            yes.append(Question(position, tokens, (), True))
        elif peak <= low * largest:
            no.append(Question(position, tokens, (), False))
    return yes, no


def _fuzzing(
    sequences: LabeledSequences,
    positions: Sequence[int],
    largest: float,
    low: float,
    rng: np.random.Generator,
) -> tuple[list[Question], list[Question]]:
    yes, no = [], []
    for position in positions:
        values, tokens = sequences.activations[position], sequences.tokens[position]
        # A mark needs something to stand around.
        shown = np.asarray([bool(token.strip()) for token in tokens])
        is_active = values >= ACTIVE_SHARE * largest
        active = np.flatnonzero(is_active & shown)
        if not len(active):
            continue
        yes.append(Question(position, tokens, tuple(active.tolist()), True))
        quiet = np.flatnonzero(~is_active & (values <= low * largest) & shown)
        if len(quiet):
            chosen = rng.choice(quiet, size=min(len(active), len(quiet)), replace=False)
            no.append(Question(position, tokens, tuple(sorted(chosen.tolist())), False))
    return yes, no


def _balanced(
    yes: list[Question], no: list[Question], most: int, rng: np.random.Generator
) -> list[Question]:
    """As many of either label as there are of the rarer one, drawn evenly, in random order."""
    each = min(len(yes), len(no), most // 2)
    chosen = [
        label[position]
        for label in (yes, no)
        for position in sorted(rng.choice(len(label), size=each, replace=False).tolist())
    ]
    return [chosen[position] for position in rng.permutation(len(chosen)).tolist()]


def _none(split: ScoringSplit, lack: str, advice: str) -> FailedPrecondition:
    source = f"the record of {split.dataset}" if split.dataset else "the request"
    return FailedPrecondition(
        f"{source} has {lack} among the sequences to score; {advice}",
        field="" if split.dataset else "sequences.scored_sequences",
        reason="NOTHING_TO_JUDGE",
    )
