"""What a run of scoring has come to, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import neuropil
from neuropil.names import CALIBRATION_KINDS
from neuropil.simulation import v1
from services.launcher.scoring.explained import Explained

SCORED = "scored"
REUSED = "reused"
FAILED = "failed"
LEFT = "left"
"""Status of a row."""


@dataclass(frozen=True)
class Measured:
    """What a score was made by, and the scores beside the preferred one; None where there is none.

    What a field means for which method is said in `neuropil.ScoredExplanation`.
    """

    simulator: str = ""
    simulator_model: str = ""
    calibration: str = ""
    prompt_version: str = ""
    judge_model: str = ""
    explainer: str = ""
    """Of an explanation that was proposed."""
    explainer_model: str = ""
    scored_sequences: int | None = None
    software_version: str = ""
    r_squared: float | None = None
    absolute_deviation_explained: float | None = None
    uncalibrated_ev_correlation: float | None = None
    uncalibrated_r_squared: float | None = None
    uncalibrated_absolute_deviation_explained: float | None = None
    roc_auc: float | None = None

    @classmethod
    def of(cls, scored: neuropil.ScoredExplanation) -> Measured:
        """By the answer's provenance."""
        provenance, before = scored.provenance, scored.uncalibrated_scores
        calibrated = provenance.HasField("calibration")
        return cls(
            provenance.simulator,
            provenance.simulator_model,
            CALIBRATION_KINDS.name(provenance.calibration.kind) if calibrated else "",
            provenance.prompt_version or provenance.judge_prompt_version,
            provenance.judge_model,
            provenance.explanation.explainer,
            provenance.explanation.model,
            provenance.scored_sequence_count,
            provenance.software_version,
            scored.scores.get("r_squared"),
            scored.scores.get("absolute_deviation_explained"),
            before.get("ev_correlation"),
            before.get("r_squared"),
            before.get("absolute_deviation_explained"),
            scored.scores.get("roc_auc"),
        )


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
    measured: Measured = field(default_factory=Measured)

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
            Measured.of(scored),
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
