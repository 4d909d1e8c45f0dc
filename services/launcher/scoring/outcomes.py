"""What a run of scoring has come to, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import neuropil
from neuropil.simulation import v1
from services.launcher.scoring.explained import Explained

SCORED = "scored"
REUSED = "reused"
FAILED = "failed"
LEFT = "left"
"""Status of a row."""


@dataclass(frozen=True)
class Outcome:
    """The end of one explanation."""

    explained: Explained
    status: str = LEFT
    method: str = ""
    score: float | None = None
    interval: tuple[float, float] | None = None
    why: str = ""
    """Why it failed, or why its score is undefined."""
    calls: int = 0
    prompt_tokens_computed: int = 0
    prompt_tokens_reused: int = 0
    completion_tokens: int = 0
    put: str = ""
    put_failure: str = ""

    @property
    def tokens(self) -> int:
        """What counts against a budget of tokens."""
        return self.prompt_tokens_computed + self.completion_tokens


@dataclass
class Outcomes:
    """All rows in the order of the input, and what they came to."""

    rows: list[Outcome]
    spent: v1.SimulationCost
    """By all runs of the key."""
    stopped_by: str = ""

    @classmethod
    def of(cls, explained: Sequence[Explained]) -> Outcomes:
        """None of them scored yet."""
        return cls([Outcome(each) for each in explained], v1.SimulationCost())

    def add(self, result: neuropil.BulkResult) -> None:
        """Enter a result; one that comes again, after a broken call, changes nothing."""
        before = self.rows[result.position]
        # Sent again within this run, it was not scored by an earlier one.
        again = before.status == SCORED
        status = REUSED if result.reused and not again else SCORED
        scored = result.scored
        if scored is None:
            self.rows[result.position] = Outcome(
                before.explained,
                FAILED,
                why=result.failure,
            )
            return
        cost = scored.provenance.cost
        self.rows[result.position] = Outcome(
            before.explained,
            status,
            scored.method,
            scored.score,
            scored.preferred.interval,
            scored.preferred.undefined_reason.replace("_", " "),
            cost.call_count,
            cost.prompt_tokens_computed,
            cost.prompt_tokens_reused,
            cost.completion_tokens,
            result.put,
            result.put_failure,
        )

    def count(self, *statuses: str) -> int:
        """Number of rows of these statuses."""
        return sum(row.status in statuses for row in self.rows)

    @property
    def scores(self) -> list[float]:
        """Those that are defined."""
        return [row.score for row in self.rows if row.score is not None]

    @property
    def not_put(self) -> int:
        """Rows whose score could not be stored."""
        return sum(row.put == "failed" for row in self.rows)
