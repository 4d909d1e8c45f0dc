"""Scores of attention heads: which pairs are asked about, how, and what becomes of the answers."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from services.simulation.errors import InvalidInput
from services.simulation.language_models.interface import (
    Choice,
    Generation,
    GenerationOptions,
    LanguageModel,
    Prompt,
)
from services.simulation.prompts.token_pairs import PairMarks, TokenPairPrompt
from services.simulation.scores.classification import classification_scores
from services.simulation.scores.simulation_scores import UndefinedReason
from services.simulation.scoring.attention_pairs import (
    AttentionTask,
    LabeledPair,
    ScoredAttention,
    score_attention,
    select_pairs,
)
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs, TokenPairSplit
from services.simulation.scoring.simulation_scoring import ScoringProgress
from services.simulation.simulators.interface import (
    OneByOne,
    SimulatedSequence,
    SimulationCost,
)
from shared.errors import FailedPrecondition
from shared.formats.token_pairs import pair_at, row_lengths

EXPLANATION = "from a capital letter to the same letter"


def clear_answer(attending: str, fits: bool) -> Choice:
    likely = 0.9 if fits else 0.2
    return Choice(np.array([1 - likely, likely]), cost=SimulationCost(calls=1))


class ReadingModel:
    """Answers by whether the two marked tokens are the same letter."""

    version = "reading 1"
    state = "ready"

    def __init__(self, answer: Callable[[str, bool], Choice] = clear_answer) -> None:
        self.prompts: list[Prompt] = []
        self._answer = answer

    async def choose(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> Sequence[Choice]:
        assert list(choices) == ["0", "1"]
        self.prompts += prompts
        return [self._choice(prompt.own[-1].content) for prompt in prompts]

    def _choice(self, question: str) -> Choice:
        assert EXPLANATION in question
        text = question.split("Text: ")[1]
        attended, attending = re.search(r"\*\*(.)\*\*", text), re.search(r"\[\[\**(.)\**\]\]", text)
        assert attended is not None
        assert attending is not None
        fits = attending[1].lower() == attended[1].lower() and "[[**" not in text
        return self._answer(attending[1], fits)

    async def generate(
        self, prompts: Sequence[Prompt], options: GenerationOptions
    ) -> Sequence[Generation]:
        raise AssertionError("nothing is generated")


class Lender(OneByOne):
    """A simulator that lends its language model."""

    kind: ClassVar[str] = "lender"
    name = "lender"
    model = "reading 1"
    prompt_version = ""
    has_exact_probabilities: ClassVar[bool] = True
    description: ClassVar[str] = "Reads."
    capabilities = ()
    state = "ready"

    def __init__(self, language_model: LanguageModel | None) -> None:
        self.language_model = language_model

    def start(self) -> None: ...

    async def close(self) -> None: ...

    async def simulate(
        self, explanation: str, sequences: Sequence[Sequence[str]]
    ) -> AsyncGenerator[SimulatedSequence, None]:
        raise AssertionError("nothing is simulated")
        yield


def head(texts: Sequence[str], caps: Sequence[int] | None = None) -> LabeledTokenPairs:
    """A head that looks from letters to the same letter, strongest from capitals, up to a cap."""
    caps = caps or [len(text) for text in texts]
    activations = []
    for text, cap in zip(texts, caps, strict=True):
        total = int(row_lengths(len(text), cap).sum())
        at = [pair_at(i, len(text), total) for i in range(total)]
        activations.append(
            np.array(
                [
                    (2.0 + i / 10 if text[i].isupper() else 1.0)
                    if text[i].lower() == text[j].lower() and i != j
                    else 0.001 * (i + j)
                    for i, j in at
                ]
            )
        )
    return LabeledTokenPairs(tuple(map(tuple, texts)), tuple(activations), tuple(caps))


def task(labeled: LabeledTokenPairs, **changes: object) -> AttentionTask:
    return replace(
        AttentionTask(EXPLANATION, TokenPairSplit(labeled), pairs_per_sequence=2),
        **changes,  # type: ignore[arg-type]
    )


async def run(
    asked: AttentionTask, model: LanguageModel | None
) -> tuple[list[ScoringProgress], ScoredAttention]:
    events = [event async for event in score_attention(asked, Lender(model))]
    result = events.pop()
    assert isinstance(result, ScoredAttention)
    return [event for event in events if isinstance(event, ScoringProgress)], result


TEXTS = ["abcaA", "xyXzw", "qrstQ", "mnoMp"]


async def test_an_explanation_that_fits_ranks_strong_pairs_first() -> None:
    model = ReadingModel()
    progress, result = await run(task(head(TEXTS)), model)
    assert result.roc_auc.value == 1.0
    assert result.roc_auc.interval is not None
    labels = [each.pair.label for each in result.pairs]
    assert (labels.count(True), labels.count(False)) == (6, 6)
    assert result.provenance.pairs == len(model.prompts) == 12
    assert result.provenance.judge_model == "reading 1"
    assert result.provenance.judge_prompt_version.startswith("attention_pairs-1+")
    assert result.provenance.cost.calls == progress[-1].cost.calls == 12
    assert (progress[0].completed, progress[-1].stage) == (0, "score")
    # All calls share instruction and examples, so that they are computed once.
    assert len({prompt.shared for prompt in model.prompts}) == 1


async def test_an_explanation_that_does_not_fit_ranks_by_chance() -> None:
    def constant(attending: str, fits: bool) -> Choice:
        return Choice(np.array([0.5, 0.5]))

    _, result = await run(task(head(TEXTS)), ReadingModel(constant))
    assert result.roc_auc.value == 0.5


async def test_pairs_of_a_sequence_are_drawn_together() -> None:
    def uncertain(attending: str, fits: bool) -> Choice:
        likely = ord(attending) * 37 % 101 / 101
        return Choice(np.array([1 - likely, likely]))

    _, result = await run(task(head(TEXTS)), ReadingModel(uncertain))
    labels = [float(each.pair.label) for each in result.pairs]
    predictions = [each.prediction or 0.0 for each in result.pairs]
    own = [each.pair.sequence for each in result.pairs]
    assert result.roc_auc == classification_scores(labels, predictions, own).roc_auc
    alone = classification_scores(labels, predictions, range(len(own))).roc_auc
    assert result.roc_auc.interval != alone.interval


@pytest.mark.parametrize("cap", [1, 2, 3, 5])
def test_pairs_of_capped_sequences_are_where_they_belong(cap: int) -> None:
    labeled = head(["abAcA", "ABCAB"], [cap, cap])
    chosen = select_pairs(labeled, 100, 0.5, 3)
    for pair in chosen:
        assert pair.attended < min(cap, pair.attending + 1)
        tokens = labeled.tokens[pair.sequence]
        same = tokens[pair.attending].lower() == tokens[pair.attended].lower()
        if not pair.label:
            assert not same or pair.attending == pair.attended
    total = sum(len(values) for values in labeled.activations)
    assert len({pair for pair in chosen if pair.label}) == total
    weak = sum(int((values < 0.5 * 2.4).sum()) for values in labeled.activations)
    assert len([pair for pair in chosen if not pair.label]) == weak


def test_weak_pairs_follow_the_seed() -> None:
    labeled = head(TEXTS)
    first, again, other = (select_pairs(labeled, 4, 0.1, seed) for seed in (1, 1, 2))
    assert first == again
    assert first[:4] == other[:4]
    assert first[4:] != other[4:]


def test_pairs_that_are_not_finite_are_passed_over() -> None:
    values = np.array([np.nan, 3.0, np.inf, 0.1, -np.inf, 0.0])
    labeled = LabeledTokenPairs((("a", "b", "c"),), (values,), (3,))
    assert select_pairs(labeled, 1, 0.1, 0)[0] == LabeledPair(0, 1, 0, True)
    assert len(select_pairs(labeled, 9, 0.1, 0)) == 3 + 2
    assert select_pairs(LabeledTokenPairs(), 5, 0.1, 0) == []


async def test_no_weak_pairs_leave_the_score_undefined() -> None:
    _, result = await run(task(head(TEXTS), low_activation_threshold=0.0), ReadingModel())
    assert result.roc_auc.reason == UndefinedReason.UNDEFINED_SINGLE_CLASS
    assert result.roc_auc.value is None


async def test_answers_that_can_not_be_read_are_left_out_and_said() -> None:
    def broken(attending: str, fits: bool) -> Choice:
        if attending == "Q":
            return Choice(None, "no digit")
        if attending == "M":
            return Choice(np.array([np.nan, np.nan]))
        return clear_answer(attending, fits)

    _, result = await run(task(head(TEXTS), min_coverage=0.5), ReadingModel(broken))
    unread = [each for each in result.pairs if each.prediction is None]
    assert {each.issue for each in unread} == {
        "no digit",
        "the probability is no number from 0 to 1",
    }
    assert result.report.malformed == len(unread)
    assert result.report.valid == len(result.pairs) - len(unread)
    assert result.roc_auc.value == 1.0
    with pytest.raises(FailedPrecondition, match="no digit") as caught:
        await run(task(head(TEXTS)), ReadingModel(broken))
    assert caught.value.reason == "COVERAGE_TOO_LOW"


async def test_what_can_not_be_asked_is_refused() -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await run(task(head(TEXTS)), None)
    assert caught.value.reason == "NO_LANGUAGE_MODEL"
    silent = LabeledTokenPairs((("a", "b"),), (np.zeros(3),), (2,))
    for labeled in (silent, LabeledTokenPairs()):
        with pytest.raises(FailedPrecondition) as caught:
            await run(task(labeled), ReadingModel())
        assert caught.value.reason == "NOTHING_TO_JUDGE"
    with pytest.raises(InvalidInput):
        await run(task(head(TEXTS), explanation=" "), ReadingModel())


async def test_a_limit_takes_sequences_evenly() -> None:
    _, result = await run(task(head(TEXTS), max_sequences=2), ReadingModel())
    assert result.sequences == (tuple(TEXTS[1]), tuple(TEXTS[3]))


def test_pairs_are_marked() -> None:
    prompt = TokenPairPrompt()
    assert prompt.text(["a", " b", " c"], 2, 0) == "**a** b[[ c]]"
    assert prompt.text(["a", " b"], 1, 1) == "a[[** b**]]"
    question = prompt.prompt("x {text} y", ["{text}", "{explanation}"], 1, 0).own[-1].content
    assert "Text: **{text}**[[{explanation}]]" in question


@pytest.mark.parametrize("text", ["2**3", "a[[0]]", "@@ {{ ** [[", "§§§⟦⟦⟦ ** @@ {{ [["])
def test_marks_do_not_occur_in_the_text(text: str) -> None:
    marks = PairMarks.absent_from(text)
    for mark in (*marks.attended, *marks.attending):
        assert mark not in text
    shared = "".join(
        message.content for message in TokenPairPrompt(marks).prompt("e", ["a"], 0, 0).shared
    )
    for known in (*PairMarks().attended, *PairMarks().attending):
        if known in text:
            assert known not in shared
