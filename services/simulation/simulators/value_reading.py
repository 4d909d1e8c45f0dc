"""From logits to the probabilities of the values 0 to 10, for any tokenizer that tells them apart.

Where every value begins with an id of its own, its probability is the softmax over these eleven
logits. A tokenizer that splits "10" begins "1" and "10" with the same id; what that id got is then
shared by how the text goes on: with the second id of "10", or with the end of the line,

    P(10) = p(1) p(0 | 1) / (p(0 | 1) + p(end | 1)),    P(1) = p(1) - P(10)

where p(. | 1) is what the model expects after "1".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.simulation.sequence_simulation import NUM_VALUES
from services.simulation.simulators.token_pieces import PieceTokenizer
from shared.errors import FailedPrecondition

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class ValueReading:
    """Which logits tell the values apart; the order of `columns` is that of the logits read."""

    columns: NDArray[np.int64]
    """The first id of each value that begins in its own way, then what `branch` needs."""
    column_of_value: NDArray[np.int64]
    """Column [11] of each value's first id."""
    branch: tuple[int, ...] = ()
    """The id that two values begin with; empty where there is none."""
    shorter: int = 0
    longer: int = 0
    """These two values."""

    @classmethod
    def of(cls, tokenizer: PieceTokenizer) -> ValueReading:
        """How a tokenizer writes the values.

        Raises:
            FailedPrecondition: it can't write the lines of a prompt, or not tell two values apart.
        """
        tab, end = _required(tokenizer, "\t"), _required(tokenizer, "\n")
        if tab == end or tab == tokenizer.piece(" ").ids:
            raise _not_served("writes a tab as another blank", "\t")
        values = [_required(tokenizer, str(value)) for value in range(NUM_VALUES)]
        firsts = list(dict.fromkeys(ids[0] for ids in values))
        column_of_value = np.array([firsts.index(ids[0]) for ids in values])
        shared = [
            [value for value, ids in enumerate(values) if ids[0] == first] for first in firsts
        ]
        split = [group for group in shared if len(group) > 1]
        if not split:
            return cls(np.array(firsts, dtype=np.int64), column_of_value)
        shorter, longer = sorted(split[0], key=lambda value: len(values[value]))[:2]
        if (
            len(split) > 1
            or len(split[0]) > 2
            or len(values[shorter]) != 1
            or len(values[longer]) < 2
            or values[longer][1] == end[0]
        ):
            raise _not_served("doesn't tell apart", ", ".join(str(v) for v in split[0]))
        columns = [*firsts, values[longer][1], end[0]]
        branch = (values[shorter][0],)
        return cls(np.array(columns, dtype=np.int64), column_of_value, branch, shorter, longer)

    def probabilities(self, logits: FloatArray, branch_logits: FloatArray | None) -> FloatArray:
        """[n, 11] from logits [n, columns]; rows with a logit that isn't finite are NaN.

        `branch_logits` are those after `branch`, and needed where there is one.
        """
        with np.errstate(invalid="ignore"):
            firsts = _softmax(logits[:, : int(self.column_of_value.max()) + 1])
            result: FloatArray = firsts[:, self.column_of_value]
            if self.branch:
                if branch_logits is None:
                    raise ValueError("the values are split, so branch_logits are needed")
                goes_on = _softmax(branch_logits[:, -2:])[:, 0]
                result[:, self.longer] *= goes_on
                result[:, self.shorter] *= 1.0 - goes_on
        return result


def _softmax(logits: FloatArray) -> FloatArray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: FloatArray = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def _required(tokenizer: PieceTokenizer, text: str) -> tuple[int, ...]:
    piece = tokenizer.piece(text)
    if piece.problem or not piece.ids:
        raise _not_served("has no ids for", text)
    return piece.ids


def _not_served(what: str, text: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the model's tokenizer {what} {text!r}; the lines of a prompt need it",
        reason="TOKENIZER_NOT_SERVED",
    )
