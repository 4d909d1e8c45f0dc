"""Bulk runs, as messages."""

from __future__ import annotations

from neuropil.simulation import v1
from services.simulation.bulk.events import (
    PutKind,
    RunEvent,
    RunProgress,
    RunResult,
    RunSummary,
    StoppedBy,
)
from services.simulation.convert.simulations import cost_message

_PUTS = {
    PutKind.NOT_ASKED: v1.PUT_OUTCOME_NOT_ASKED,
    PutKind.STORED: v1.PUT_OUTCOME_STORED,
    PutKind.FAILED: v1.PUT_OUTCOME_FAILED,
}
_LIMITS = {
    StoppedBy.NOTHING: v1.BUDGET_LIMIT_UNSPECIFIED,
    StoppedBy.TOKENS: v1.BUDGET_LIMIT_TOKENS,
    StoppedBy.CALLS: v1.BUDGET_LIMIT_CALLS,
}


def event_message(event: RunEvent) -> v1.BulkScoreExplanationsResponse:
    """What happened in a run, and what it has spent."""
    spent = cost_message(event.spent)
    match event:
        case RunProgress():
            progress = v1.Progress(completed=event.completed, total=event.total, stage="score")
            return v1.BulkScoreExplanationsResponse(progress=progress, spent=spent)
        case RunResult():
            return v1.BulkScoreExplanationsResponse(result=_result_message(event), spent=spent)
        case RunSummary():
            return v1.BulkScoreExplanationsResponse(summary=_summary_message(event), spent=spent)


def _result_message(event: RunResult) -> v1.BulkResult:
    message = v1.BulkResult(
        position=event.position,
        put=_PUTS[event.put.kind],
        put_failure=event.put.why,
        reused=event.reused,
    )
    if event.result is not None:
        message.scored_explanation.MergeFromString(event.result)
    elif event.failure is not None:
        message.failure = event.failure.message
        message.failure_reason = event.failure.reason
    return message


def _summary_message(event: RunSummary) -> v1.BulkSummary:
    return v1.BulkSummary(
        done=event.done,
        failed=event.failed,
        left=event.left,
        reused=event.reused,
        not_put=event.not_stored,
        stopped_by=_LIMITS[event.stopped_by],
    )
