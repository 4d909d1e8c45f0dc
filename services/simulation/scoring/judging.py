"""Detection and fuzzing: score an explanation by judging sequences, or marked tokens, with it.

A simulator that asks a language model lends it as the judge. Of others the simulated activations
stand in: the judgement of a sequence is its largest expected activation on the scale 0 to 10,
divided by 10; that of marked tokens their mean, divided by 10.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from services.simulation.language_models.interface import LanguageModel
from services.simulation.normalized_activations import MAX_NORMALIZED_ACTIVATION
from services.simulation.prompts.judging import CHOICES, JudgingPrompt, Marks
from services.simulation.scores.classification import ClassificationScores, classification_scores
from services.simulation.scoring.judged_choices import (
    AT_ONCE,
    DEFAULT_LOW_ACTIVATION,
    prediction,
    report_of,
    require_coverage,
)
from services.simulation.scoring.judgement_questions import (
    DEFAULT_MAX_JUDGEMENTS,
    JudgingMethod,
    Question,
    questions,
)
from services.simulation.scoring.labeled_sequences import ScoringSplit, Tokens
from services.simulation.scoring.simulation_scoring import ScoringProgress
from services.simulation.simulators.interface import (
    DEFAULT_MIN_COVERAGE,
    SimulatedSequence,
    SimulationCost,
    Simulator,
    ValidityReport,
    check_request,
)

_PROMPTS = {JudgingMethod.DETECTION: "detection-1", JudgingMethod.FUZZING: "fuzzing-1"}


@dataclass(frozen=True)
class JudgingTask:
    """An explanation to judge by, and what is judged."""

    explanation: str
    split: ScoringSplit
    method: JudgingMethod
    seed: int = 0
    """Of what is chosen and marked."""
    max_judgements: int = DEFAULT_MAX_JUDGEMENTS
    low_activation_threshold: float = DEFAULT_LOW_ACTIVATION
    """Share of the largest activation up to which a sequence or token is not active."""
    min_coverage: float = DEFAULT_MIN_COVERAGE
    """Smallest share of questions that must get an answer that can be read."""
    max_sequences: int = 0
    """Most sequences to ask about; 0: all."""


@dataclass(frozen=True, eq=False, slots=True)
class Judgement:
    """A question, the right answer, and the judge's."""

    tokens: Tokens
    marked: tuple[int, ...]
    """Positions of the marked tokens, ascending; empty where the whole sequence was judged."""
    label: bool
    """Whether the sequence activates the component, or the marked tokens are active."""
    probability: float | None
    """The judge's probability that it is so; None where its answer can't be read."""
    issue: str = ""
    """Why there is no probability."""


@dataclass(frozen=True)
class JudgingProvenance:
    """Where judgements come from."""

    simulator: str
    simulator_kind: str
    simulator_model: str
    prompt_version: str
    """Of the simulator, where its simulations stand in for a judge; empty otherwise."""
    judge_model: str
    """The language model that judged; empty where simulations stand in for one."""
    judge_prompt_version: str
    dataset: str
    seed: int
    scored_sequences: int
    """Sequences that a judgement is about."""
    judgements: int
    cost: SimulationCost


@dataclass(frozen=True, eq=False)
class JudgedExplanation:
    """Judgements by an explanation, with their scores."""

    explanation: str
    method: JudgingMethod
    judgements: tuple[Judgement, ...]
    scores: ClassificationScores
    """Of the judgements with a probability; intervals are over sequences."""
    report: ValidityReport
    provenance: JudgingProvenance


async def judge(
    task: JudgingTask, simulator: Simulator
) -> AsyncGenerator[ScoringProgress | JudgedExplanation, None]:
    """Progress while it runs, then the result.

    Raises:
        FailedPrecondition: there is nothing to judge (`NOTHING_TO_JUDGE`), or too few answers can
            be read (`COVERAGE_TOO_LOW`).
        InvalidInput: fewer than two judgements are allowed.
        InvalidInput, ResourceExhausted, Unavailable: as the simulator or its language model says.
    """
    check_request(task.explanation, task.split.limited(task.max_sequences).scored.tokens)
    # Of thousands of sequences this takes a while, in which others should be answered.
    asked = await asyncio.to_thread(
        questions,
        task.split,
        task.method,
        task.max_judgements,
        task.low_activation_threshold,
        task.seed,
        task.max_sequences,
    )
    yield ScoringProgress(0, len(asked), "judge")
    model = simulator.language_model
    judgements: list[Judgement] = []
    cost = SimulationCost()
    prompt_version = ""
    if model is not None:
        prompt = _prompt(task.method, asked)
        prompt_version = prompt.version
        for start in range(0, len(asked), AT_ONCE):
            batch = asked[start : start + AT_ONCE]
            answers, spent = await _ask(task.explanation, batch, prompt, model)
            judgements += answers
            cost += spent
            yield ScoringProgress(len(judgements), len(asked), "judge", cost)
    else:
        simulations: dict[Tokens, SimulatedSequence] = {}
        sequences = list(dict.fromkeys(question.tokens for question in asked))
        async with aclosing(simulator.simulate(task.explanation, sequences)) as results:
            async for result in results:
                simulations[tuple(result.tokens)] = result
                cost += result.cost
                yield ScoringProgress(
                    len(asked) * len(simulations) // len(sequences), len(asked), "judge", cost
                )
        judgements = [
            _stand_in(question, simulations[question.tokens], task.min_coverage)
            for question in asked
        ]
    report = report_of(
        len(judgements), [each.issue for each in judgements if each.probability is None]
    )
    require_coverage(report, task.min_coverage, "judgements", "judgements")
    yield ScoringProgress(len(asked), len(asked), "score", cost)
    read = [position for position, each in enumerate(judgements) if each.probability is not None]
    scores = await asyncio.to_thread(
        classification_scores,
        [float(judgements[position].label) for position in read],
        [judgements[position].probability or 0.0 for position in read],
        [asked[position].sequence for position in read],
        task.seed,
    )
    yield JudgedExplanation(
        explanation=task.explanation,
        method=task.method,
        judgements=tuple(judgements),
        scores=scores,
        report=report,
        provenance=JudgingProvenance(
            simulator=simulator.name,
            simulator_kind=simulator.kind,
            simulator_model=simulator.model,
            prompt_version="" if model is not None else simulator.prompt_version,
            judge_model="" if model is None else model.version,
            judge_prompt_version=prompt_version,
            dataset=task.split.dataset,
            seed=task.seed,
            scored_sequences=len({question.sequence for question in asked}),
            judgements=len(judgements),
            cost=cost,
        ),
    )


def _prompt(method: JudgingMethod, asked: Sequence[Question]) -> JudgingPrompt:
    marks = Marks()
    if method is JudgingMethod.FUZZING:
        # A mark must not arise where two tokens meet either.
        marks = Marks.absent_from("".join("".join(question.tokens) for question in asked))
    return JudgingPrompt(_PROMPTS[method], marks)


async def _ask(
    explanation: str, batch: Sequence[Question], prompt: JudgingPrompt, model: LanguageModel
) -> tuple[list[Judgement], SimulationCost]:
    prompts = [prompt.prompt(explanation, question.tokens, question.marked) for question in batch]
    choices = await model.choose(prompts, CHOICES)
    judgements = [
        _judgement(question, *prediction(choice))
        for question, choice in zip(batch, choices, strict=True)
    ]
    return judgements, sum((choice.cost for choice in choices), SimulationCost())


def _stand_in(question: Question, result: SimulatedSequence, min_coverage: float) -> Judgement:
    """The judgement that simulated activations make."""
    expected = result.simulation().expected_activations
    if question.marked:
        expected = expected[list(question.marked)]
    known = expected[~np.isnan(expected)]
    if not len(known) or len(known) < min_coverage * len(expected):
        return _judgement(question, None, "too few of its tokens got a distribution")
    strength = known.mean() if question.marked else known.max()
    return _judgement(question, float(np.clip(strength / MAX_NORMALIZED_ACTIVATION, 0, 1)))


def _judgement(question: Question, probability: float | None, issue: str = "") -> Judgement:
    return Judgement(question.tokens, question.marked, question.label, probability, issue)
