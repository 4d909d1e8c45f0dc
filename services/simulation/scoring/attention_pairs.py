"""Score an explanation of an attention head: does it tell strong token pairs from weak ones?

The strongest pairs of the scored sequences are labelled 1, as many weak ones, drawn by chance, 0. A
language model is asked of each whether it fits the explanation; its prediction is
p("1") / (p("0") + p("1")), and the score is the area under the ROC curve of the predictions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import numpy as np

from services.simulation.language_models.interface import LanguageModel
from services.simulation.prompts.judging import CHOICES
from services.simulation.prompts.token_pairs import PairMarks, TokenPairPrompt
from services.simulation.scores.classification import classification_scores
from services.simulation.scores.simulation_scores import Score
from services.simulation.scoring.judged_choices import (
    AT_ONCE,
    DEFAULT_LOW_ACTIVATION,
    prediction,
    report_of,
    require_coverage,
)
from services.simulation.scoring.labeled_sequences import Tokens
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs, TokenPairSplit
from services.simulation.scoring.simulation_scoring import ScoringProgress
from services.simulation.simulators.interface import (
    DEFAULT_MIN_COVERAGE,
    SimulationCost,
    Simulator,
    ValidityReport,
    check_request,
)
from shared.errors import FailedPrecondition

DEFAULT_PAIRS_PER_SEQUENCE = 5


@dataclass(frozen=True)
class AttentionTask:
    """An explanation of a head to score, and how."""

    explanation: str
    split: TokenPairSplit
    pairs_per_sequence: int = DEFAULT_PAIRS_PER_SEQUENCE
    """Strong pairs, on average over the sequences; and as many weak ones."""
    low_activation_threshold: float = DEFAULT_LOW_ACTIVATION
    """Share of the largest activation below which a pair is weak."""
    max_sequences: int = 0
    """0 means all."""
    seed: int = 0
    """Of the choice of weak pairs, and of the resamples of the interval."""
    min_coverage: float = DEFAULT_MIN_COVERAGE
    """Smallest share of pairs that must get an answer that can be read."""


@dataclass(frozen=True, slots=True)
class LabeledPair:
    """A token pair of a sequence with the right answer."""

    sequence: int
    """Position among the sequences."""
    attending: int
    attended: int
    label: bool
    """Whether the head attends strongly there."""


@dataclass(frozen=True, slots=True)
class PredictedPair:
    """A token pair, and what the judge says of it."""

    pair: LabeledPair
    prediction: float | None
    """Probability that it is a strong one; None where the answer can't be read."""
    issue: str = ""
    """Why there is no prediction."""


@dataclass(frozen=True)
class AttentionProvenance:
    """Where a score of a head comes from."""

    simulator: str
    simulator_kind: str
    simulator_model: str
    judge_model: str
    judge_prompt_version: str
    dataset: str
    seed: int
    scored_sequences: int
    """Sequences that a pair is of."""
    pairs: int
    cost: SimulationCost


@dataclass(frozen=True, eq=False)
class ScoredAttention:
    """The predictions by an explanation, with their score."""

    explanation: str
    sequences: tuple[Tokens, ...]
    pairs: tuple[PredictedPair, ...]
    roc_auc: Score
    """Of the pairs with a prediction; its interval is over sequences."""
    report: ValidityReport
    provenance: AttentionProvenance


async def score_attention(
    task: AttentionTask, simulator: Simulator
) -> AsyncGenerator[ScoringProgress | ScoredAttention, None]:
    """Progress while it runs, then the result.

    Raises:
        FailedPrecondition: the simulator runs no language model (`NO_LANGUAGE_MODEL`), there is no
            pair to ask about (`NOTHING_TO_JUDGE`), or too few answers can be read
            (`COVERAGE_TOO_LOW`).
        InvalidInput, ResourceExhausted, Unavailable: as the language model says.
    """
    labeled = task.split.limited(task.max_sequences).scored
    check_request(task.explanation, labeled.tokens)
    model = simulator.language_model
    if model is None:
        raise FailedPrecondition(
            f"the simulator {simulator.name} runs no language model that could judge token pairs; "
            "name one that does, or make one the deployment's default_simulator",
            field="simulator",
            reason="NO_LANGUAGE_MODEL",
        )
    pairs = await asyncio.to_thread(_asked, task, labeled)
    prompt = TokenPairPrompt(
        PairMarks.absent_from("".join("".join(tokens) for tokens in labeled.tokens))
    )
    yield ScoringProgress(0, len(pairs), "judge")
    predicted: list[PredictedPair] = []
    cost = SimulationCost()
    for start in range(0, len(pairs), AT_ONCE):
        batch = pairs[start : start + AT_ONCE]
        answers, spent = await _ask(task.explanation, batch, labeled, prompt, model)
        predicted += answers
        cost += spent
        yield ScoringProgress(len(predicted), len(pairs), "judge", cost)
    report = report_of(
        len(predicted), [each.issue for each in predicted if each.prediction is None]
    )
    require_coverage(report, task.min_coverage, "predictions", "pairs")
    yield ScoringProgress(len(pairs), len(pairs), "score", cost)
    yield ScoredAttention(
        explanation=task.explanation,
        sequences=labeled.tokens,
        pairs=tuple(predicted),
        roc_auc=await asyncio.to_thread(roc_auc, predicted, task.seed),
        report=report,
        provenance=AttentionProvenance(
            simulator=simulator.name,
            simulator_kind=simulator.kind,
            simulator_model=simulator.model,
            judge_model=model.version,
            judge_prompt_version=prompt.version,
            dataset=task.split.dataset,
            seed=task.seed,
            scored_sequences=len({pair.sequence for pair in pairs}),
            pairs=len(pairs),
            cost=cost,
        ),
    )


def select_pairs(
    labeled: LabeledTokenPairs, count: int, low: float, seed: int
) -> list[LabeledPair]:
    """The `count` strongest pairs of all sequences, then up to `count` weak ones in random order.

    A pair is weak where its activation is less than `low` times the largest. Pairs without a finite
    activation are passed over. Of a seed the choice is the same in every release, and the same that
    the reference implementation makes with Python's random numbers seeded so.
    """
    values, sequences, flat = _by_strength(labeled)
    if not len(values):
        return []
    strong = np.argsort(-values, kind="stable")[:count]
    weak = np.flatnonzero(values < low * values.max())
    # Python's own generator: its sampling is the same for the same seed everywhere.
    drawn = random.Random(seed).sample(range(len(weak)), min(len(weak), count))
    coordinates = {int(s): labeled.coordinates(int(s)) for s in np.unique(sequences)}
    chosen = []
    for positions, label in ((strong, True), (weak[drawn], False)):
        for position in positions.tolist():
            sequence = int(sequences[position])
            attending, attended = coordinates[sequence]
            at = int(flat[position])
            chosen.append(LabeledPair(sequence, int(attending[at]), int(attended[at]), label))
    return chosen


def roc_auc(predicted: Sequence[PredictedPair], seed: int) -> Score:
    """Of the pairs with a prediction, with an interval over sequences."""
    read = [each for each in predicted if each.prediction is not None]
    return classification_scores(
        [float(each.pair.label) for each in read],
        [each.prediction or 0.0 for each in read],
        [each.pair.sequence for each in read],
        seed,
    ).roc_auc


def _asked(task: AttentionTask, labeled: LabeledTokenPairs) -> list[LabeledPair]:
    values, _, _ = _by_strength(labeled)
    largest = values.max() if len(values) else 0.0
    if largest <= 0:
        source = f"the record of {task.split.dataset}" if task.split.dataset else "the request"
        raise FailedPrecondition(
            f"{source} has no token pair with an activation above 0 among the sequences to score",
            reason="NOTHING_TO_JUDGE",
        )
    low = task.low_activation_threshold
    # What is weak is never labelled strong, however many pairs are asked for.
    count = min(task.pairs_per_sequence * len(labeled), int((values >= low * largest).sum()))
    return select_pairs(labeled, count, low, task.seed)


def _by_strength(
    labeled: LabeledTokenPairs,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finite activations, strongest first in each sequence; its position; position within it."""
    values, sequences, flat = [], [], []
    for position, activations in enumerate(labeled.activations):
        order = np.argsort(activations, kind="stable")[::-1]
        order = order[np.isfinite(activations[order])]
        values.append(activations[order])
        sequences.append(np.full(len(order), position))
        flat.append(order)
    if not values:
        return np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(values), np.concatenate(sequences), np.concatenate(flat)


async def _ask(
    explanation: str,
    batch: Sequence[LabeledPair],
    labeled: LabeledTokenPairs,
    prompt: TokenPairPrompt,
    model: LanguageModel,
) -> tuple[list[PredictedPair], SimulationCost]:
    prompts = [
        prompt.prompt(explanation, labeled.tokens[pair.sequence], pair.attending, pair.attended)
        for pair in batch
    ]
    choices = await model.choose(prompts, CHOICES)
    predicted = [
        PredictedPair(pair, *prediction(choice))
        for pair, choice in zip(batch, choices, strict=True)
    ]
    return predicted, sum((choice.cost for choice in choices), SimulationCost())
