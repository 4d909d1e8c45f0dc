"""What `neuropil score` prints: a table for people, plain lines for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.launcher.demo.naming import number
from services.launcher.scoring.outcomes import FAILED, LEFT, REUSED, SCORED, Outcome, Outcomes

SHOWN = 40
"""Rows of the table; the files have all."""
BINS = 10
_BAR = 40
_WIDE = 80
"""Columns of a terminal that has room for intervals and costs."""
_PLAIN = ("component", "explanation", "score", "low", "high", "tokens", "status", "why")


def print_outcomes(outcomes: Outcomes) -> None:
    """A table and a histogram on a terminal; else a line a row, cells apart by tabs."""
    console = Console()
    if console.is_terminal:
        console.print(_summary(outcomes, wide=console.width >= _WIDE))
        return
    lines = ["\t".join(_PLAIN), *("\t".join(_plain(row)) for row in outcomes.rows)]
    sys.stdout.write("\n".join(lines) + "\n")


def sentence(outcomes: Outcomes) -> str:
    """How it ended."""
    spent = outcomes.spent
    tokens = spent.prompt_tokens_computed + spent.completion_tokens
    parts = [
        f"{outcomes.count(SCORED, REUSED)} of {len(outcomes.rows)} explanations scored",
        f"{outcomes.count(REUSED)} of them by an earlier run" if outcomes.count(REUSED) else "",
        f"{outcomes.count(FAILED)} failed" if outcomes.count(FAILED) else "",
        f"{outcomes.count(LEFT)} left" if outcomes.count(LEFT) else "",
        f"{outcomes.not_put} not stored" if outcomes.not_put else "",
        f"{spent.call_count} calls and {tokens} tokens spent",
    ]
    end = f"; the budget of {outcomes.stopped_by} is used up" if outcomes.stopped_by else ""
    return ", ".join(part for part in parts if part) + end


def _summary(outcomes: Outcomes, *, wide: bool) -> RenderableType:
    ranked = sorted(outcomes.rows, key=_rank)
    table = Table(title=Text("Scores, best first"), title_justify="left", title_style="bold")
    table.add_column("component", no_wrap=True)
    table.add_column("explanation", ratio=1)
    table.add_column("score", justify="right", no_wrap=True)
    if wide:
        table.add_column("95 %", no_wrap=True)
        table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("status", overflow="fold", min_width=len(REUSED))
    for row in ranked[:SHOWN]:
        status = f"{row.status}: {row.why}" if row.why else row.status
        table.add_row(
            Text(row.explained.name),
            Text(row.explained.explanation),
            number(row.score),
            *((_interval(row), str(row.tokens)) if wide else ()),
            Text(status),
        )
    if len(ranked) > SHOWN or not wide:
        more = f"{len(ranked) - SHOWN} more are" if len(ranked) > SHOWN else "More is"
        table.caption = f"{more} in scores.csv."
        table.caption_justify = "left"
    return Group(table, "", _histogram(outcomes.scores))


def _rank(row: Outcome) -> tuple[bool, float]:
    return row.score is None, -(row.score or 0.0)


def _interval(row: Outcome) -> str:
    if row.interval is None:
        return ""
    return f"{number(row.interval[0])} to {number(row.interval[1])}"


def _histogram(scores: Sequence[float]) -> RenderableType:
    if not scores:
        return Text("No score is defined.")
    low, high = min(0.0, *scores), max(1.0, *scores)
    counts = [0] * BINS
    for score in scores:
        counts[min(int((score - low) / (high - low) * BINS), BINS - 1)] += 1
    lines = []
    for position, count in enumerate(counts):
        begin = low + (high - low) * position / BINS
        end = low + (high - low) * (position + 1) / BINS
        bar = "█" * round(_BAR * count / max(counts))
        lines.append(
            f"{number(begin):>6} to {number(end):>5} {bar or ('▏' if count else '')} {count}"
        )
    return Text("\n".join(lines))


def _plain(row: Outcome) -> list[str]:
    low, high = row.interval or (None, None)
    cells = [row.explained.name, row.explained.explanation, row.score, low, high]
    cells += [row.tokens, row.status, row.why or row.put_failure]
    return [" ".join(_cell(cell).split()) for cell in cells]


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
