"""Sequences with activations as prompts show them: a line a token, between two marks.

Prompts are made of `line_pieces`; the two formatting functions are for callers in Python, and hold
these lines against the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from services.simulation.errors import InvalidInput, require_same_length
from services.simulation.normalized_activations import normalize_activations
from shared.formats.records import ActivationRecord

START, END = "<start>", "<end>"
HIDDEN = "unknown"
"""What stands where an activation isn't told."""


def format_activation_records(
    records: Sequence[ActivationRecord],
    max_activation: float,
    *,
    omit_zeros: bool = False,
    hide_activations: bool = False,
    start_indices: Sequence[int] | None = None,
) -> str:
    """The records with their activations as whole numbers from 0 to 10.

    `max_activation` is what 10 stands for. `omit_zeros` leaves out the lines of tokens whose number
    is 0, `hide_activations` hides all numbers, and `start_indices` those before one position a
    record.

    Raises:
        InvalidInput: `omit_zeros` together with hidden numbers, another number of start indices
            than of records, or activations that aren't finite.
    """
    if omit_zeros and (hide_activations or start_indices is not None):
        raise InvalidInput(
            "a line can't be left out for a number that is hidden: ask for one of the two",
            field="omit_zeros",
        )
    if start_indices is not None:
        require_same_length(len(records), "records", len(start_indices), "start_indices")
    parts = []
    for position, record in enumerate(records):
        require_same_length(
            len(record.tokens),
            f"records[{position}].tokens",
            len(record.activations),
            f"records[{position}].activations",
        )
        first = len(record.tokens) if hide_activations else 0
        if start_indices is not None and not hide_activations:
            first = start_indices[position]
        values = normalize_activations(record.activations, max_activation).tolist()
        rows = [
            (token, None if row < first else value)
            for row, (token, value) in enumerate(zip(record.tokens, values, strict=True))
            if value or not omit_zeros
        ]
        parts.append(_between_marks(rows))
    return "\n" + "".join(parts)


def format_sequences_for_simulation(sequences: Sequence[Sequence[str]]) -> str:
    """The sequences with all activations hidden."""
    return "\n" + "".join(
        _between_marks([(token, None) for token in tokens]) for tokens in sequences
    )


def line_pieces(
    tokens: Sequence[str], values: Sequence[int | None], hidden: str = HIDDEN
) -> tuple[str, ...]:
    """Four pieces a token: the token, a tab, its value (None: hidden) and the end of the line."""
    shown = (hidden if value is None else str(value) for value in values)
    return tuple(
        chain.from_iterable(
            (token, "\t", value, "\n") for token, value in zip(tokens, shown, strict=True)
        )
    )


def _between_marks(rows: Sequence[tuple[str, int | None]]) -> str:
    pieces = line_pieces([token for token, _ in rows], [value for _, value in rows])
    # A sequence without tokens has one empty line, as in the reference.
    lines = "".join(pieces) or "\n"
    return f"{START}\n{lines}{END}\n"
