"""How fast calibration, scores and local simulators are, and how well the embedding simulator does.

`make bench-simulation` (`python -m tests.load.simulation_bench`) prints it as Markdown, with what a
shared prefix saves a local language model.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from functools import partial

import numpy as np

from data.recipe.layout import RECORDS as RECORDS_FOLDER
from data.recipe.score import chosen
from data.recipe.token_head import FOLDER
from data.recipe.token_head_check import labeled, split_of
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
from services.simulation.simulators.interface import SimulatedSequence, Simulator
from services.simulation.simulators.token_head import TokenHeadSimulator
from services.simulation.simulators.words import WordSequence
from shared.formats.decoding import decode_neuron_record
from tests.load import simulation_prefix_bench

RECORDS, TOKENS = 157, 64
DEMO = RECORDS_FOLDER / "mlp"
NEURONS = 40
UNRELATED = "the names of cities in Europe"
REFERENCE = {
    CalibrationKind.NONE: 626,
    CalibrationKind.LINEAR: 159,
    CalibrationKind.PERCENTILE: 454,
    CalibrationKind.ISOTONIC: 454,
}
"""Records/s of the reference on this kind of machine; it has no isotonic one, so its percentile."""
TARGET = 100


def fastest(work: Callable[[], object], times: int = 20, rounds: int = 5) -> float:
    """Seconds of the fastest round."""
    work()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(times):
            work()
        seconds.append((time.perf_counter() - began) / times)
    return min(seconds)


def speed(times: int = 20) -> list[str]:
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
        f"alone in plain numpy: {RECORDS / fastest(plain, times):,.0f}",
        "",
        "| calibration | apply, score | fit, apply, score | and intervals | reference | "
        "against it | with intervals |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in CalibrationKind:
        fitted = fit_calibration(kind, simulated, true)

        def apply(calibration: Calibration = fitted, seed: int | None = None) -> None:
            expected = calibration.apply(simulated)
            calibration.apply(NORMALIZED_VALUES)
            score_sequences(true, expected, lengths, interval_seed=seed)

        def fit_and_apply(kind: CalibrationKind = kind, seed: int | None = None) -> None:
            apply(fit_calibration(kind, simulated, true), seed)

        applied, whole = RECORDS / fastest(apply, times), RECORDS / fastest(fit_and_apply, times)
        with_intervals = RECORDS / fastest(partial(fit_and_apply, seed=0), max(1, times // 4))
        floor = REFERENCE[kind]
        verdict = "pass" if whole >= TARGET * floor else "miss"
        lines.append(
            f"| {kind} | {applied:,.0f} | {whole:,.0f} | {with_intervals:,.0f} | {floor} | "
            f"{whole / floor:,.0f} x (>= {TARGET}: {verdict}) | {with_intervals / floor:,.0f} x |"
        )
    return lines


async def tokens_a_second(neurons: int = 12) -> list[str]:
    """New tokens simulated a second by the simulators without a language model, in process."""
    split = [
        split_of(decode_neuron_record(path.read_bytes(), str(path)))
        for path in sorted(DEMO.glob("*/*.json"))[:: 1024 // neurons][:neurons]
    ]
    sequences = [
        tokens for each in split for tokens in each.calibration.tokens + each.scored.tokens
    ]
    total = sum(map(len, sequences))
    explanations = [each.explanation for each in chosen()]
    lines = ["| simulator | what | tokens/s |", "|---|---|---|"]
    for make in (
        partial(EmbeddingSimulator, "embedding"),
        partial(TokenHeadSimulator, "token_head", FOLDER, "cpu"),
    ):
        simulator: Simulator = make()
        # Loaded, but nothing of these sequences is remembered.
        await _drain(simulator.simulate(UNRELATED, [["a"]]))
        for name, explanation in (
            ("new sequences", UNRELATED),
            ("another, the same sequences", explanations[0]),
        ):
            began = time.perf_counter()
            await _drain(simulator.simulate(explanation, sequences))
            rate = total / (time.perf_counter() - began)
            lines.append(f"| {simulator.kind} | one explanation, {name} | {rate:,.0f} |")
        began = time.perf_counter()
        await _drain(simulator.simulate_explanations(explanations, sequences[0]))
        rate = len(explanations) * len(sequences[0]) / (time.perf_counter() - began)
        lines.append(
            f"| {simulator.kind} | {len(explanations)} explanations, one sequence of "
            f"{len(sequences[0])} tokens | {rate:,.0f} |"
        )
        await simulator.close()
    return lines


async def _drain(results: AsyncGenerator[SimulatedSequence, None]) -> None:
    async for _ in results:
        pass


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
    """All but the shared prefix, as Markdown."""
    return [*speed(), "", *await tokens_a_second(), "", *await quality()]


if __name__ == "__main__":
    print("\n".join([*asyncio.run(measure()), "", *simulation_prefix_bench.lines()]))
