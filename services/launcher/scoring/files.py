"""The files that `neuropil score` writes: scores.csv, scores.json and scores.png."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from services.launcher.scoring.outcomes import Measured, Outcome, Outcomes

PLOTTED = 2_000
"""Most intervals of the plot; of more, so many evenly apart by rank."""

_COLUMNS = (
    "derived_scalar_type",
    "layer",
    "component",
    "dataset",
    "explanation",
    "status",
    "method",
    "score",
    "low",
    "high",
    "why",
    "calls",
    "prompt_tokens_computed",
    "prompt_tokens_reused",
    "completion_tokens",
    "put",
    "put_failure",
    *(field.name for field in fields(Measured)),
)


def write_files(outcomes: Outcomes, out: Path, facts: dict[str, Any]) -> list[Path]:
    """Write all three, each whole or not at all; `facts` are of the run, for the JSON file.

    Raises:
        OSError: if they can't be written, for example where the disk is full.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = [_row(row) for row in outcomes.rows]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, _COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    spent = outcomes.spent
    content = {
        **facts,
        "stopped_by": outcomes.stopped_by,
        "spent": {
            "calls": spent.call_count,
            "prompt_tokens_computed": spent.prompt_tokens_computed,
            "prompt_tokens_reused": spent.prompt_tokens_reused,
            "completion_tokens": spent.completion_tokens,
            "seconds": spent.seconds,
        },
        "scores": rows,
    }
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    return [
        _written(out / "scores.csv", table.getvalue().encode()),
        _written(out / "scores.json", text.encode()),
        _written(out / "scores.png", plot(outcomes)),
    ]


def plot(outcomes: Outcomes) -> bytes:
    """A histogram of the scores, and all of them by rank with their intervals, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    scored = [row for row in outcomes.rows if row.score is not None and math.isfinite(row.score)]
    scored.sort(key=lambda row: row.score or 0.0)
    scores = [row.score for row in scored if row.score is not None]
    left.hist(scores, bins=min(40, max(10, len(scores) // 5)), color="#4477aa")
    left.set_xlabel("score")
    left.set_ylabel("explanations")
    step = max(1, math.ceil(len(scored) / PLOTTED))
    for rank, row in list(enumerate(scored))[::step]:
        if row.interval is not None:
            right.plot([rank, rank], row.interval, color="#bbccee", linewidth=1, zorder=1)
    right.plot(range(len(scores)), scores, ".", color="#4477aa", markersize=3, zorder=2)
    right.set_xlabel("explanations by rank")
    right.set_ylabel("score, 95 % interval")
    figure.suptitle(f"{len(scored)} of {len(outcomes.rows)} explanations have a score")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _row(row: Outcome) -> dict[str, Any]:
    low, high = row.interval or (None, None)
    explained = row.explained
    return {
        "derived_scalar_type": explained.derived_scalar_type,
        "layer": explained.layer,
        "component": explained.component,
        "dataset": explained.dataset,
        "explanation": explained.explanation,
        "status": row.status,
        "method": row.method,
        "score": row.score,
        "low": low,
        "high": high,
        "why": row.why,
        "calls": row.calls,
        "prompt_tokens_computed": row.prompt_tokens_computed,
        "prompt_tokens_reused": row.prompt_tokens_reused,
        "completion_tokens": row.completion_tokens,
        "put": row.put,
        "put_failure": row.put_failure,
        **asdict(row.measured),
    }


def _written(path: Path, content: bytes) -> Path:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".scores-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return path
