"""How good the token head is on neurons that it never saw.

`python -m data.recipe.token_head_check` prints medians.

Correlations after a linear calibration, on the scored split of each record: of neurons kept from
training with explanations made by rule, and of the demo's explanations, which people wrote; each
against the explanation of another neuron.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer
from rich.console import Console

from data.recipe.layout import RECORDS
from data.recipe.score import chosen
from data.recipe.token_head import FOLDER
from data.recipe.token_head_data import RecordExamples
from services.simulation.calibration.calibrations import CalibrationKind
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit
from services.simulation.scoring.simulation_scoring import (
    ScoredExplanation,
    ScoringTask,
    score_explanation,
)
from services.simulation.simulators.interface import Simulator
from services.simulation.simulators.token_head import TokenHeadSimulator
from shared.formats.decoding import decode_neuron_record
from shared.formats.records import ActivationRecord, NeuronRecord


def labeled(records: Sequence[ActivationRecord]) -> LabeledSequences:
    """Sequences as arrays."""
    return LabeledSequences(
        tuple(tuple(record.tokens) for record in records),
        tuple(np.asarray(record.activations, dtype=np.float64) for record in records),
    )


def split_of(record: NeuronRecord) -> ScoringSplit:
    """What a score is computed from."""
    top = labeled(record.most_positive_activation_records)
    return ScoringSplit.from_record(top, labeled(record.random_sample), "demo")


async def correlations(
    simulator: Simulator, pairs: Sequence[tuple[str, NeuronRecord]], shift: int = 0
) -> list[float]:
    """Of each neuron with its own explanation, or with that of the neuron `shift` further on."""
    found = []
    for number, (_, record) in enumerate(pairs):
        explanation = pairs[(number + shift) % len(pairs)][0]
        task = ScoringTask(explanation, split_of(record), CalibrationKind.LINEAR)
        events = [event async for event in score_explanation(task, simulator)]
        assert isinstance(events[-1], ScoredExplanation)
        found.append(events[-1].scores.overall.preferred or 0.0)
    return found


async def check(folder: Path) -> list[str]:
    """Markdown."""
    kept = RecordExamples(random.Random(0)).checked
    written = []
    for each in chosen():
        path = RECORDS / "mlp" / str(each.layer) / f"{each.neuron}.json"
        written.append((each.explanation, decode_neuron_record(path.read_bytes(), str(path))))
    simulator = TokenHeadSimulator("token-head", folder, "cpu")
    lines = ["| explanations | neurons | own | another neuron's |", "|---|---|---|---|"]
    for name, pairs in (("made by rule", kept), ("written by people", written)):
        own = np.median(await correlations(simulator, pairs))
        other = np.median(await correlations(simulator, pairs, shift=7))
        lines.append(f"| {name} | {len(pairs)} | {own:.2f} | {other:.2f} |")
    await simulator.close()
    return lines


def main(folder: Path = FOLDER) -> None:
    """Print the table."""
    Console().print("\n".join(asyncio.run(check(folder))), markup=False)


if __name__ == "__main__":
    typer.run(main)
