"""The demo's explanations with every simulator that runs offline, every calibration, and the cost.

`python -m tests.load.simulation_table` prints two tables as Markdown; with `--write` it puts them
into docs/simulation.md between its markers. Language models run on the demo's own model, which has
never seen an instruction: they show what works and what it costs, not how good a simulator can be.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.recipe.layout import DEMO, MODEL, RECORDS
from data.recipe.score import Explained, chosen
from data.recipe.token_head_check import split_of
from services.simulation.calibration.calibrations import CalibrationKind, fit_calibration
from services.simulation.scores.simulation_scores import score_sequences
from services.simulation.scoring.judgement_questions import JudgingMethod
from services.simulation.scoring.judging import JudgedExplanation, JudgingTask, judge
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit
from services.simulation.simulators.interface import SimulationCost, Simulator, ValidityReport
from services.simulation.simulators.registry import SimulatorRegistry
from shared.errors import NeuropilError
from shared.formats.decoding import decode_neuron_record
from shared.settings import (
    CausalLmSimulator,
    ChatSimulator,
    CompletionsSimulator,
    Deployment,
    EmbeddingSimulator,
    TokenHeadSimulator,
)
from tests.emulators.openai_server import OpenAiServer
from tests.emulators.small_model import SmallModel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulation.md"
LOW_ACTIVATION = 0.3
"""Records of the demo have few sequences that stay at a tenth of the largest activation."""
BEGIN, END = "<!-- simulation_table: begin -->", "<!-- simulation_table: end -->"


@dataclass
class Column:
    """What one simulator gave: a value an explanation, NaN where a score is undefined."""

    simulator: Simulator
    correlations: list[float] = field(default_factory=list)
    r_squared: dict[CalibrationKind, list[float]] = field(default_factory=dict)
    detection: list[float] = field(default_factory=list)
    fuzzing: list[float] = field(default_factory=list)
    cost: SimulationCost = field(default_factory=SimulationCost)
    judging_cost: SimulationCost = field(default_factory=SimulationCost)
    report: ValidityReport = field(default_factory=ValidityReport)
    not_judged: Counter[str] = field(default_factory=Counter)
    """Judgings that were refused, by reason."""


@contextmanager
def simulators() -> Iterator[list[Simulator]]:
    """One of each kind, the remote ones against a server on a socket of this machine."""
    with OpenAiServer(SmallModel.load(MODEL)) as server:
        remote = {"base_url": server.base_url, "model": "demo"}
        deployment = Deployment(
            simulators=(
                EmbeddingSimulator(name="embedding", kind="embedding"),
                TokenHeadSimulator(
                    name="token_head", kind="token_head", path=str(DEMO / "token_head")
                ),
                CausalLmSimulator(
                    name="causal_lm", kind="causal_lm", path=str(MODEL), device="cpu"
                ),
                CompletionsSimulator(
                    name="completions", kind="completions", prompt="compact-1", **remote
                ),
                ChatSimulator(name="chat", kind="chat", **remote),
            ),
            default_simulator="embedding",
        )
        yield list(SimulatorRegistry.from_deployment(deployment))


async def measured(simulator: Simulator, explained: Sequence[Explained]) -> Column:
    """Simulate the calibration and the scored split once, and apply every calibration."""
    column = Column(simulator)
    for each in explained:
        path = RECORDS / "mlp" / str(each.layer) / f"{each.neuron}.json"
        split = split_of(decode_neuron_record(path.read_bytes(), str(path)))
        await _simulate(column, each.explanation, split)
        for method, values in (
            (JudgingMethod.DETECTION, column.detection),
            (JudgingMethod.FUZZING, column.fuzzing),
        ):
            task = JudgingTask(
                each.explanation,
                split,
                method,
                low_activation_threshold=LOW_ACTIVATION,
                min_coverage=0.0,
            )
            try:
                events = [event async for event in judge(task, simulator)]
            except NeuropilError as error:
                column.not_judged[error.reason] += 1
                values.append(np.nan)
                continue
            result = events[-1]
            assert isinstance(result, JudgedExplanation)
            column.judging_cost += result.provenance.cost
            auc = result.scores.roc_auc.value
            values.append(np.nan if auc is None else auc)
    return column


async def _simulate(column: Column, explanation: str, split: ScoringSplit) -> None:
    values = []
    for part in (split.calibration, split.scored):
        results = [result async for result in column.simulator.simulate(explanation, part.tokens)]
        column.cost += sum((result.cost for result in results), SimulationCost())
        column.report += sum((result.report for result in results), ValidityReport())
        values.append([result.simulation().expected_activations for result in results])
    fitted_on, scored = values
    for kind in CalibrationKind:
        true, simulated, _ = _both(split.calibration, fitted_on)
        if len(true):
            calibration = fit_calibration(kind, simulated, true)
            true, simulated, lengths = _both(split.scored, scored)
            scores = score_sequences(true, calibration.apply(simulated), lengths).overall
            r_squared, correlation = scores.rsquared.value, scores.correlation.value
        else:
            r_squared = correlation = None
        column.r_squared.setdefault(kind, []).append(np.nan if r_squared is None else r_squared)
        if kind is CalibrationKind.NONE:
            column.correlations.append(np.nan if correlation is None else correlation)


def _both(
    labeled: LabeledSequences, simulated: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    true, expected = np.concatenate(labeled.activations), np.concatenate(simulated)
    known = ~np.isnan(expected)
    return true[known], expected[known], [int((~np.isnan(each)).sum()) for each in simulated]


def _shown(values: Sequence[float], digits: int = 2) -> str:
    known = [value for value in values if not np.isnan(value)]
    return f"{np.median(known):.{digits}f}" if known else "-"


def _cost(cost: SimulationCost) -> str:
    return (
        f"{cost.calls:,} | {cost.prompt_tokens_computed:,} | {cost.prompt_tokens_reused:,} | "
        f"{cost.completion_tokens:,} | {cost.seconds:.1f}"
    )


def tables(columns: Sequence[Column], explained: Sequence[Explained]) -> list[str]:
    """Markdown: medians and cost by simulator, then the correlation of each explanation."""
    tokens = columns[0].report.tokens
    lines = [
        f"Medians over {len(explained)} explanations; {tokens:,} tokens of calibration and scored "
        "splits in all. Detection and fuzzing: ROC AUC, with a low-activation threshold of "
        f"{LOW_ACTIVATION}.",
        "",
        "| simulator | tokens with a distribution | correlation | R squared: none | linear | "
        "percentile | isotonic | detection | fuzzing |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for column in columns:
        r_squared = " | ".join(_shown(column.r_squared[kind]) for kind in CalibrationKind)
        lines.append(
            f"| {column.simulator.name} | {column.report.coverage:.1%} | "
            f"{_shown(column.correlations)} | {r_squared} | {_shown(column.detection)} | "
            f"{_shown(column.fuzzing)} |"
        )
    lines += [
        "",
        "| simulator | calls | prompt tokens computed | reused | written | seconds |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {column.simulator.name} | {_cost(column.cost)} |" for column in columns]
    lines += [
        f"| {column.simulator.name}, detection and fuzzing | {_cost(column.judging_cost)} |"
        for column in columns
    ]
    refused = [
        f"{column.simulator.name} {count} times `{reason}`"
        for column in columns
        for reason, count in sorted(column.not_judged.items())
    ]
    if refused:
        lines += ["", f"Of {2 * len(explained)} judgings, refused: {', '.join(refused)}."]
    names = " | ".join(column.simulator.name for column in columns)
    lines += [
        "",
        f"| neuron | explanation | {names} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for number, each in enumerate(explained):
        values = " | ".join(_shown([column.correlations[number]]) for column in columns)
        lines.append(f"| {each.layer}/{each.neuron} | {each.explanation} | {values} |")
    return lines


async def measure(limit: int | None = None, kinds: Sequence[str] = ()) -> list[str]:
    """All tables."""
    explained = chosen()[:limit]
    with simulators() as available:
        columns = []
        for simulator in available:
            if not kinds or simulator.kind in kinds:
                columns.append(await measured(simulator, explained))
            await simulator.close()
    return tables(columns, explained)


def written(page: str, lines: Sequence[str]) -> str:
    """The page with the lines between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", *lines, "", END + after])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--kind", action="append", default=[])
    arguments = parser.parse_args()
    if arguments.write and (arguments.limit or arguments.kind):
        parser.error("--write is for the whole tables, without --limit and --kind")
    found = asyncio.run(measure(arguments.limit, arguments.kind))
    print("\n".join(found))
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
