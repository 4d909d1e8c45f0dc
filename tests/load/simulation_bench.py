"""How fast calibration and scores are, and how well the embedding simulator does on the demo.

`python -m tests.load.simulation_bench` prints both as Markdown.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from services.simulation.calibration.calibrations import (
    Calibration,
    CalibrationKind,
    fit_calibration,
)
from services.simulation.scores.simulation_scores import score_sequences
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit
from services.simulation.scoring.simulation_scoring import (
    ScoredExplanation,
    ScoringTask,
    score_explanation,
)
from services.simulation.sequence_simulation import NORMALIZED_VALUES
from services.simulation.simulators.embedding import EmbeddingSimulator
from services.simulation.simulators.words import WordSequence
from shared.formats.decoding import decode_neuron_record
from shared.formats.records import ActivationRecord

RECORDS, TOKENS = 157, 64
DEMO = Path(__file__).resolve().parents[2] / "data/demo/records/mlp"
NEURONS = 40
UNRELATED = "the names of cities in Europe"


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of five rounds."""
    work()
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(20):
            work()
        rounds.append((time.perf_counter() - began) / 20)
    return min(rounds)


def speed() -> list[str]:
    """Records a second, arrays in and out, against the three scores alone in plain numpy."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(len(NORMALIZED_VALUES)), RECORDS * TOKENS)
    simulated = probabilities @ NORMALIZED_VALUES
    true = np.maximum(0.0, simulated + rng.normal(size=len(simulated)) - 6)
    lengths = np.full(RECORDS, TOKENS)

    def plain() -> None:
        np.corrcoef(true, simulated)
        np.mean(np.square(true - simulated)) / np.mean(np.square(true))
        np.mean(np.abs(true - simulated)) / np.mean(np.abs(true))

    lines = [
        f"{RECORDS} records of {TOKENS} tokens with distributions, records/s; the overall scores "
        f"alone in plain numpy: {RECORDS / fastest(plain):,.0f}",
        "",
        "| calibration | fit, apply, score | apply, score |",
        "|---|---|---|",
    ]
    for kind in CalibrationKind:
        fitted = fit_calibration(kind, simulated, true)

        def apply(calibration: Calibration = fitted) -> None:
            expected = calibration.apply(simulated)
            calibration.apply(NORMALIZED_VALUES)
            score_sequences(true, expected, lengths)

        def fit_and_apply(kind: CalibrationKind = kind) -> None:
            apply(fit_calibration(kind, simulated, true))

        whole = fastest(fit_and_apply)
        lines.append(f"| {kind} | {RECORDS / whole:,.0f} | {RECORDS / fastest(apply):,.0f} |")
    return lines


def labeled(records: list[ActivationRecord]) -> LabeledSequences:
    """A record's sequences as arrays."""
    return LabeledSequences(
        tuple(tuple(record.tokens) for record in records),
        tuple(np.asarray(record.activations, dtype=np.float64) for record in records),
    )


def top_word(top: LabeledSequences) -> str | None:
    """The word at the peak of most top sequences, if there is one."""
    peaks: Counter[str] = Counter()
    for tokens, activations in zip(top.tokens, top.activations, strict=True):
        sequence = WordSequence.from_tokens(tokens)
        word = int(sequence.word_of_token[int(np.nanargmax(activations))])
        if word >= 0:
            peaks[sequence.words[word].lower()] += 1
    word_count = peaks.most_common(1)
    if not word_count or word_count[0][1] < 0.6 * len(top):
        return None
    return word_count[0][0]


async def quality() -> list[str]:
    """Correlations on demo neurons that peak at one word, chosen by a fixed seed."""
    chosen = []
    for path in sorted(DEMO.glob("*/*.json")):
        record = decode_neuron_record(path.read_bytes(), str(path))
        top = labeled(record.most_positive_activation_records)
        word = top_word(top)
        if word is not None:
            chosen.append((word, top, labeled(record.random_sample), path))
    simulator = EmbeddingSimulator("embedding")
    found: dict[str, list[float]] = {"quoted": [], "named": [], "unrelated": []}
    seconds, tokens = 0.0, 0
    for position in np.random.default_rng(0).permutation(len(chosen))[:NEURONS]:
        word, top, random, path = chosen[position]
        split = ScoringSplit.from_record(top, random, str(path))
        for name, text in (
            ("quoted", f"the word '{word}'"),
            ("named", f"things like {word}"),
            ("unrelated", UNRELATED),
        ):
            task = ScoringTask(text, split, CalibrationKind.LINEAR)
            async for event in score_explanation(task, simulator):
                if isinstance(event, ScoredExplanation):
                    found[name].append(event.scores.overall.preferred or 0.0)
                    if name == "quoted":
                        seconds += event.provenance.cost.seconds
                        tokens += sum(map(len, split.scored.tokens + split.calibration.tokens))
    await simulator.close()
    lines = [
        f"{len(chosen)} neurons of the demo peak at one word; of {NEURONS} of them, by chance, the "
        f"correlation ({tokens / seconds:,.0f} new tokens simulated a second):",
        "",
        "| explanation | 10 % | median | 90 % |",
        "|---|---|---|---|",
    ]
    for name, values in found.items():
        low, middle, high = np.percentile(values, [10, 50, 90])
        lines.append(f"| {name} | {low:.2f} | {middle:.2f} | {high:.2f} |")
    return lines


async def measure() -> list[str]:
    """Both, as Markdown."""
    return [*speed(), "", *await quality()]


if __name__ == "__main__":
    print("\n".join(asyncio.run(measure())))
