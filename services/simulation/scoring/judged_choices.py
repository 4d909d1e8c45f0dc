"""What a judge's choice between "0" and "1" counts for, and how many of them can be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from services.simulation.language_models.interface import Choice
from services.simulation.prompts.judging import CHOICES, YES
from services.simulation.simulators.interface import ValidityReport
from shared.errors import FailedPrecondition

DEFAULT_LOW_ACTIVATION = 0.1
"""Share of the largest activation up to which something is not active."""

AT_ONCE = 16
"""Questions between two reports of progress."""


def prediction(choice: Choice) -> tuple[float | None, str]:
    """The probability of "1", or None with the issue."""
    if choice.probabilities is None:
        return None, choice.issue or "no answer"
    probability = float(choice.probabilities[CHOICES.index(YES)])
    if not 0 <= probability <= 1:
        return None, "the probability is no number from 0 to 1"
    return probability, ""


def report_of(total: int, issues: Sequence[str]) -> ValidityReport:
    """Of so many answers, of which those with an issue can't be read."""
    return ValidityReport(
        valid=total - len(issues),
        malformed=len(issues),
        tokens_by_reason=tuple(sorted(Counter(issues).items())),
    )


def require_coverage(report: ValidityReport, min_coverage: float, answers: str, kind: str) -> None:
    """Refuse a score of too few answers, which are called `answers`, and `kind` in metadata.

    Raises:
        FailedPrecondition: a smaller share than `min_coverage` can be read (`COVERAGE_TOO_LOW`).
    """
    if report.coverage >= min_coverage:
        return
    reasons = ", ".join(f"{reason} ({count})" for reason, count in report.tokens_by_reason)
    raise FailedPrecondition(
        f"only {report.valid} of {report.tokens} {answers} can be read, a share of "
        f"{report.coverage:.3g} where {min_coverage:.3g} is asked for: {reasons}",
        reason="COVERAGE_TOO_LOW",
        metadata={
            f"valid_{kind}": str(report.valid),
            f"malformed_{kind}": str(report.malformed),
        },
    )
