"""How well the context explainer's best proposals predict unseen sequences of the demo's neurons.

`python -m tests.load.explaining_bench` prints it as Markdown; every score comes from the embedding
simulator, which proposals were not chosen with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np

from services.simulation.calibration.calibrations import CalibrationKind
from services.simulation.explaining.context import ContextExplainer
from services.simulation.explaining.evidence import TokenEvidence
from services.simulation.explaining.interface import ProposalOptions
from services.simulation.scoring.judgement_questions import JudgingMethod
from services.simulation.scoring.judging import JudgedExplanation, JudgingTask, judge
from services.simulation.scoring.labeled_sequences import ScoringSplit
from services.simulation.scoring.simulation_scoring import (
    ScoredExplanation,
    ScoringTask,
    score_explanation,
)
from services.simulation.simulators.embedding import EmbeddingSimulator
from shared.errors import FailedPrecondition
from shared.formats.decoding import decode_neuron_record
from tests.load.simulation_bench import DEMO, NEURONS, UNRELATED, labeled, top_word

ALL_NEURONS = 50


@dataclass(frozen=True, eq=False)
class Neuron:
    """A neuron of the demo: what it may be explained from, and what is scored."""

    word: str | None
    """That most of its top sequences peak at."""
    evidence: TokenEvidence
    split: ScoringSplit


def read(path: Path) -> Neuron:
    """One record."""
    record = decode_neuron_record(path.read_bytes(), str(path))
    top = labeled(record.most_positive_activation_records)
    random = labeled(record.random_sample)
    quantiles = reduce(add, (labeled(q) for q in reversed(record.random_sample_by_quantile or [])))
    return Neuron(
        top_word(top),
        TokenEvidence.from_record(top, random, quantiles, str(path)),
        ScoringSplit.from_record(top, random, str(path)),
    )


async def correlation(text: str, neuron: Neuron, simulator: EmbeddingSimulator) -> float:
    """After linear calibration, on the validation split."""
    task = ScoringTask(text, neuron.split, CalibrationKind.LINEAR)
    async for event in score_explanation(task, simulator):
        if isinstance(event, ScoredExplanation):
            return event.scores.overall.preferred or 0.0
    raise AssertionError("no result")


async def accuracy(
    text: str, neuron: Neuron, method: JudgingMethod, simulator: EmbeddingSimulator
) -> float | None:
    """Balanced accuracy of judging by simulated activations; None where nothing can be judged."""
    task = JudgingTask(text, neuron.split, method, min_coverage=0.5)
    try:
        async for event in judge(task, simulator):
            if isinstance(event, JudgedExplanation):
                return event.scores.balanced_accuracy.value
    except FailedPrecondition:
        pass
    return None


async def rows(neurons: Sequence[Neuron], simulator: EmbeddingSimulator) -> list[str]:
    """A table of the neurons."""
    explainer = ContextExplainer("context")
    found: dict[str, list[float]] = {}
    judged: dict[tuple[str, JudgingMethod], list[float]] = {}
    seconds, silent = 0.0, 0
    for neuron in neurons:
        try:
            proposed = await explainer.propose(neuron.evidence, ProposalOptions())
        except FailedPrecondition:
            silent += 1
            continue
        seconds += proposed.cost.seconds
        texts = {"best proposal": proposed.explanations[0].text, "unrelated": UNRELATED}
        if neuron.word is not None and len(neurons) == NEURONS:
            texts["quoted"] = f"the word '{neuron.word}'"
        for name, text in texts.items():
            found.setdefault(name, []).append(await correlation(text, neuron, simulator))
            for method in JudgingMethod if name != "quoted" else ():
                share = await accuracy(text, neuron, method, simulator)
                if share is not None:
                    judged.setdefault((name, method), []).append(share)
    lines = [
        "| explanation | correlation, 10 % | median | 90 % | detection, mean | fuzzing, mean |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in found.items():
        low, middle, high = np.percentile(values, [10, 50, 90])
        accuracies = " | ".join(
            f"{np.mean(shares):.2f} ({len(shares)})" if shares else ""
            for shares in (judged.get((name, method)) for method in JudgingMethod)
        )
        lines.append(f"| {name} | {low:.2f} | {middle:.2f} | {high:.2f} | {accuracies} |")
    took = 1000 * seconds / (len(neurons) - silent)
    return [*lines, "", f"{took:.0f} ms a proposal; {silent} neurons never active."]


async def measure() -> list[str]:
    """Neurons that peak at one word, and neurons of all kinds."""
    every = [read(path) for path in sorted(DEMO.glob("*/*.json"))]
    peaking = [neuron for neuron in every if neuron.word is not None]
    chosen = np.random.default_rng(0).permutation(len(peaking))[:NEURONS]
    others = np.random.default_rng(1).permutation(len(every))[:ALL_NEURONS]
    simulator = EmbeddingSimulator("embedding")
    lines = [f"{NEURONS} neurons that peak at one word:", ""]
    lines += await rows([peaking[position] for position in chosen], simulator)
    lines += ["", f"{ALL_NEURONS} neurons of all:", ""]
    lines += await rows([every[position] for position in others], simulator)
    await simulator.close()
    return lines


if __name__ == "__main__":
    print("\n".join(asyncio.run(measure())))
