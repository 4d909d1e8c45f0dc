"""What a bulk run is told by its items, and what it tells its caller."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from services.simulation.simulators.interface import SimulationCost


@dataclass(frozen=True, slots=True)
class ItemProgress:
    """What an item has cost so far, all in all."""

    cost: SimulationCost


@dataclass(frozen=True, slots=True)
class ItemResult:
    """The end of an item: its result as it is kept and sent, and what it cost all in all."""

    result: bytes
    cost: SimulationCost


_LASTING_CODES = frozenset({"INVALID_ARGUMENT"})
_LASTING_REASONS = frozenset(
    {
        "COVERAGE_TOO_LOW",
        "EXPLANATION_TOO_LONG",
        "NON_FINITE_LOGITS",
        "PROMPT_TOO_LONG",
        "RESULT_TOO_LARGE",
        "SEQUENCE_TOO_LONG",
        "TOKEN_TOO_LONG",
        "TOO_MANY_TOKENS",
    }
)


class ItemFailure(msgspec.Struct, frozen=True):
    """Why an item has no result."""

    code: str
    """Name of the status code that it would have had alone."""
    reason: str
    message: str
    """A sentence."""

    @property
    def is_lasting(self) -> bool:
        """Whether the request itself is at fault, so that the same one must fail again.

        All else may be over later: a quota is raised, a key renewed, a setting mended.
        """
        return self.code in _LASTING_CODES or self.reason in _LASTING_REASONS


class PutKind(StrEnum):
    """What became of a result at the record reader."""

    NOT_ASKED = "not_asked"
    STORED = "stored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PutOutcome:
    """The same, with a sentence where it failed."""

    kind: PutKind
    why: str = ""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run has come."""

    completed: int
    """Items with an outcome, from earlier runs or this one."""
    total: int
    running: int
    spent: SimulationCost
    """By all runs of the key, with what runs now as far as it tells."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """The outcome of one item: exactly one of `result` and `failure` is there."""

    position: int
    result: bytes | None
    failure: ItemFailure | None
    cost: SimulationCost
    """Of this item."""
    reused: bool
    """Whether it is from an earlier run."""
    put: PutOutcome
    spent: SimulationCost
    """By all runs of the key."""


class StoppedBy(StrEnum):
    """What ended a run before all items had an outcome."""

    NOTHING = "nothing"
    TOKENS = "tokens"
    CALLS = "calls"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The end of a run."""

    done: int
    """Items with a result."""
    failed: int
    """Items with a failure."""
    left: int
    """Items without an outcome."""
    reused: int
    """Of those done or failed, the ones from earlier runs."""
    not_stored: int
    """Results that should have been put to the record reader, and could not."""
    stopped_by: StoppedBy
    spent: SimulationCost


RunEvent = RunProgress | RunResult | RunSummary
