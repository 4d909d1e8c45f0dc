"""What is asked of a local model, and what it answers; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from services.simulation.errors import InvalidInput
from shared.errors import FailedPrecondition

T = TypeVar("T")

Stopped = Callable[[], bool]
"""Asked between two forward passes; where it answers True, the work ends with `WorkStopped`."""


class WorkStopped(Exception):
    """Nobody waits for the result any more."""


def never() -> bool:
    """For work that nobody stops."""
    return False


def at_once(steps: Generator[None, None, T], stopped: Stopped) -> T:
    """What the generator returns, with no turns taken; WorkStopped where `stopped` says so."""
    while True:
        if stopped():
            steps.close()
            raise WorkStopped
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def counted(steps: Generator[None, None, T]) -> Generator[None, None, tuple[T, int]]:
    """What the steps return, and how many there were: one for each yield, and the last.

    Steps of other callers' work that run in between are not counted.
    """
    calls = 1
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, calls
        calls += 1
        yield


def not_finite() -> FailedPrecondition:
    """The error of a model that answers NaN or infinity."""
    return FailedPrecondition(
        "the language model computed a logit that is not a finite number",
        reason="NON_FINITE_LOGITS",
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A continuation of a prefix, and where its logits are wanted.

    `positions` are indices into `ids`: at position p, the logits after `ids[: p + 1]` are wanted,
    of the vocabulary entries `columns`. Where `branch` isn't empty, so are the logits after
    `ids[: p + 1] + branch`, for values that a tokenizer splits ("1", "0").
    """

    ids: tuple[int, ...]
    positions: NDArray[np.int64]
    columns: NDArray[np.int64]
    branch: tuple[int, ...] = ()
    normalized: bool = False
    """Whether the logarithms of the sums over the whole vocabulary are wanted too; they cost a
    product with the whole vocabulary at each position."""

    def check(self, vocabulary: int, field: str = "row") -> None:
        """Raise InvalidInput where it names ids or positions that don't exist."""
        if not self.ids:
            raise InvalidInput(f"{field}.ids is empty; one id at least is needed", field=field)
        for name, ids in (("ids", self.ids), ("branch", self.branch), ("columns", self.columns)):
            array = np.asarray(ids, dtype=np.int64)
            if array.size and not (array.min() >= 0 and array.max() < vocabulary):
                raise InvalidInput(
                    f"{field}.{name} has ids outside of the vocabulary 0 to {vocabulary - 1}",
                    field=f"{field}.{name}",
                )
        positions = np.asarray(self.positions)
        if positions.size and not (positions.min() >= 0 and positions.max() < len(self.ids)):
            raise InvalidInput(
                f"{field}.positions are outside of 0 to {len(self.ids) - 1}",
                field=f"{field}.positions",
            )

    @property
    def computed(self) -> int:
        """Tokens of one forward pass over the row: its ids, and its branch at every position."""
        return len(self.ids) + len(self.positions) * len(self.branch)

    @property
    def longest(self) -> int:
        """Tokens after the prefix that its last token sees, itself included."""
        ends = [int(position) + 1 + len(self.branch) for position in self.positions]
        return max([len(self.ids), *ends])


@dataclass(frozen=True, eq=False, slots=True)
class RowLogits:
    """What a row asked for; all numbers are finite.

    `values` and `branch_values` are [positions, columns]; `normalizers` and `branch_normalizers`
    [positions] are the logarithms of the sum of exponentials over the whole vocabulary, so that
    `values - normalizers[:, None]` are log probabilities. They are there where the row is
    `normalized` (the branch's also where it has a branch).
    """

    values: NDArray[np.float64]
    branch_values: NDArray[np.float64] | None = None
    normalizers: NDArray[np.float64] | None = None
    branch_normalizers: NDArray[np.float64] | None = None
    computed: int = 0
    """Tokens that were computed for it: its own, and the prefix's where that can't be shared."""
    reused: int = 0
    """Tokens of the prefix that it read without computing them."""


@dataclass(frozen=True, slots=True)
class PromptCost:
    """Forward passes, and tokens of prompts: `computed + reused` are all tokens of all rows."""

    calls: int = 0
    computed: int = 0
    reused: int = 0


def prompt_cost(prefix_computed: int, results: Sequence[RowLogits], calls: int = 0) -> PromptCost:
    """The exact cost of a prefix, of which `prefix_computed` tokens were new, and of its rows."""
    computed = prefix_computed + sum(result.computed for result in results)
    reused = sum(result.reused for result in results) - prefix_computed
    return PromptCost(calls, computed, max(reused, 0))
