"""The demo's report: one HTML file that needs nothing else."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import neuropil
from services.launcher.demo.charts import scatter
from services.launcher.demo.job import DemoResult, peak_of
from services.launcher.demo.naming import node_name, number, visible
from shared.errors import ConfigurationError

FILE_NAME = "index.html"

SHOWN_SEQUENCES = 8
COMPARED_SEQUENCES = 4
SHOWN_EFFECTS = 12


@dataclass(frozen=True)
class HeatToken:
    """A token with a value, and its share of the largest for the colour."""

    lead: str
    """The blanks before it, which are not coloured."""
    text: str
    value: float
    share: float
    """0 to 1."""


def _heat_token(token: str, value: float, share: float) -> HeatToken:
    shown = visible(token)
    text = shown.lstrip(" ")
    if not text:
        return HeatToken("", shown, value, _share(share))
    return HeatToken(shown[: len(shown) - len(text)], text, value, _share(share))


def check_folder(out: Path) -> None:
    """Refuse a folder that a report can't be written to, before anything else is done.

    Raises:
        ConfigurationError: if it is none, or can't be written to.
    """
    place = out
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        is_folder, is_writable = place.is_dir(), os.access(place, os.W_OK | os.X_OK)
    except OSError as error:
        raise ConfigurationError("--out", f"{place}: {error.strerror}") from error
    if not is_folder:
        raise ConfigurationError("--out", f"{place} is not a folder")
    if not is_writable:
        raise ConfigurationError("--out", f"{place} can't be written to")


def write_report(result: DemoResult, out: Path) -> Path:
    """Write the report into the folder, whole or not at all; give its path.

    Raises:
        OSError: if it can't be written, for example where the disk is full.
    """
    page = render(result).encode()
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    temporary: str | None = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=out, prefix=".report-", suffix=".html")
        with os.fdopen(descriptor, "wb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, out / FILE_NAME)
    except BaseException:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return out / FILE_NAME


def render(result: DemoResult) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=PackageLoader("services.launcher"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    best = result.scored[result.featured]
    return environment.get_template("report.html.j2").render(
        number=number,
        model=result.model,
        featured=result.featured,
        best=best,
        max_activation=result.record.max_activation,
        neurons=result.neurons,
        scored=result.scored,
        steps=result.seconds,
        made=datetime.now(UTC).strftime("%Y-%m-%d"),
        explained=len({(neuron.layer_index, neuron.index) for neuron in result.neurons}),
        total_seconds=sum(result.seconds.values()),
        top=[_sequence(each) for each in result.record.top[:SHOWN_SEQUENCES]],
        compared=_compared(best.sequences),
        plots=_plots(best),
        effects=result.effects,
        effect_bars=_effect_bars(result),
        own=_own(result),
    )


def _sequence(sequence: neuropil.TokenSequence) -> dict[str, Any]:
    peak = peak_of(sequence)
    tokens = [
        _heat_token(token, value, normalized)
        for token, value, normalized in zip(
            sequence.tokens,
            sequence.activations.tolist(),
            sequence.normalized_activations.tolist(),
            strict=True,
        )
    ]
    return {"peak": None if peak is None else tokens[peak].value, "tokens": tokens}


def _compared(sequences: Sequence[neuropil.ScoredSequence]) -> list[list[dict[str, Any]]]:
    ranked = sorted(sequences, key=lambda sequence: -_largest(sequence.true_activations.tolist()))
    # Not only the strongest: a simulation must also be silent where the neuron is.
    chosen = ranked[: COMPARED_SEQUENCES - 1] + ranked[COMPARED_SEQUENCES - 1 :][-1:]
    scale = max(
        (
            _largest([*s.true_activations.tolist(), *s.expected_activations.tolist()])
            for s in chosen
        ),
        default=0.0,
    )
    return [
        [
            {
                "text": visible(token),
                "true": true,
                "simulated": simulated,
                "true_share": round(100 * _share(true / scale if scale else 0.0), 1),
                "simulated_share": round(100 * _share(simulated / scale if scale else 0.0), 1),
            }
            for token, true, simulated in zip(
                sequence.tokens,
                sequence.true_activations.tolist(),
                sequence.expected_activations.tolist(),
                strict=True,
            )
        ]
        for sequence in chosen
    ]


def _plots(scored: neuropil.ScoredExplanation) -> list[dict[str, Any]]:
    true = [value for s in scored.sequences for value in s.true_activations.tolist()]
    before = [value for s in scored.sequences for value in s.uncalibrated_activations.tolist()]
    after = [value for s in scored.sequences for value in s.expected_activations.tolist()]
    return [
        {
            "title": "Before",
            "across": "simulated, 0 to 10",
            "chart": scatter(before, true),
            "scores": scored.uncalibrated_scores,
        },
        {
            "title": "After",
            "across": "simulated, calibrated",
            "chart": scatter(after, true),
            "scores": scored.scores,
        },
    ]


def _effect_bars(result: DemoResult) -> list[dict[str, Any]]:
    nodes = result.effects.nodes[:SHOWN_EFFECTS]
    values = [next(iter(node.values.values())) for node in nodes]
    largest = _largest(map(abs, values))
    return [
        {
            "name": node_name(node, result.effects.tokens),
            "value": value,
            "share": round(100 * abs(value) / largest, 1) if largest else 0.0,
        }
        for node, value in zip(nodes, values, strict=True)
    ]


def _own(result: DemoResult) -> dict[str, Any] | None:
    own = result.own_effects
    if own is None:
        return None
    largest = _largest(map(abs, own.effects))
    tokens = [
        _heat_token(token, value, abs(value) / largest if largest else 0.0)
        for token, value in zip(own.tokens, own.effects, strict=True)
    ]
    return {
        "target": visible(own.target),
        "tokens": tokens,
        "strongest": max(tokens, key=lambda token: token.share),
    }


def _share(value: float) -> float:
    return round(min(max(value, 0.0), 1.0), 3) if math.isfinite(value) else 0.0


def _largest(values: Iterable[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=0.0)
