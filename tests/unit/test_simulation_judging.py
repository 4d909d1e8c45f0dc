"""Detection and fuzzing: what is asked, what an answer counts for, and what can't be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from services.simulation.errors import InvalidInput
from services.simulation.language_models.local.language_model import LocalLanguageModel
from services.simulation.prompts.judging import JudgingPrompt, Marks
from services.simulation.scores.classification import classification_scores
from services.simulation.scoring.judgement_questions import JudgingMethod, questions
from services.simulation.scoring.judging import JudgedExplanation, JudgingTask, judge
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit
from services.simulation.scoring.simulation_scoring import ScoringProgress
from services.simulation.simulators.causal_lm import CausalLmSimulator
from services.simulation.simulators.embedding import EmbeddingSimulator
from services.simulation.simulators.interface import Simulator
from shared.errors import FailedPrecondition, NeuropilError, Unavailable
from tests.unit.planted_chat import PlantedAnswers, chat_simulator
from tests.unit.small_language_models import configurations, save

ANIMALS = ("lion", "horse", "sheep", "dog", "eagle", "wolf", "goat", "camel")
DETECTION, FUZZING = JudgingMethod.DETECTION, JudgingMethod.FUZZING


def split(active: int = 6, quiet: int = 5) -> ScoringSplit:
    """Sequences with an animal in them, and others."""
    tokens, activations = [], []
    for number in range(active + quiet):
        animal = ANIMALS[number % 8] if number < active else "table"
        words = f"and under the roof a {animal} {number} stood".split()
        tokens.append(tuple(f" {word}" for word in words))
        activations.append(np.asarray([3.0 if word in ANIMALS else 0.05 for word in words]))
    return ScoringSplit(LabeledSequences(), LabeledSequences(tuple(tokens), tuple(activations)))


def of(tokens: Sequence[Sequence[str]], activations: Sequence[Sequence[float]]) -> ScoringSplit:
    scored = LabeledSequences(
        tuple(map(tuple, tokens)), tuple(np.asarray(each, dtype=float) for each in activations)
    )
    return ScoringSplit(LabeledSequences(), scored)


async def judged(task: JudgingTask, simulator: Simulator) -> JudgedExplanation:
    events = [event async for event in judge(task, simulator)]
    *progress, result = events
    assert isinstance(result, JudgedExplanation)
    counts = [event.completed for event in progress if isinstance(event, ScoringProgress)]
    assert counts == sorted(counts)
    assert len(counts) == len(progress)
    return result


def test_questions_are_balanced_labeled_and_seeded() -> None:
    detection = questions(split(), DETECTION, 20, 0.1, 3)
    assert [question.label for question in detection].count(True) == 5
    assert len(detection) == 10
    for question in detection:
        assert question.label == any(token.strip() in ANIMALS for token in question.tokens)
        assert question.marked == ()
    assert detection == questions(split(), DETECTION, 20, 0.1, 3)
    assert detection != questions(split(), DETECTION, 20, 0.1, 4)
    few = questions(split(), FUZZING, 4, 0.1, 0)
    assert len(few) == 4
    for question in few:
        marked = {question.tokens[position].strip() for position in question.marked}
        assert len(question.marked) == 1
        assert question.label == bool(marked & set(ANIMALS))
    assert len(questions(split(), FUZZING, 3, 0.1, 0)) == 2
    with pytest.raises(InvalidInput) as raised:
        questions(split(), FUZZING, 1, 0.1, 0)
    assert raised.value.field == "max_judgements"


def test_what_lies_between_active_and_not_is_not_asked_about() -> None:
    tokens = [["a", "b"]] * 3 + [["c", "d"], ["e", " "]]
    values = [[1.0, 0.0], [0.3, 0.0], [np.nan, 1.0], [0.05, 0.1], [0.9, 0.0]]
    asked = questions(of(tokens, values), DETECTION, 20, 0.1, 0)
    assert sorted(question.sequence for question in asked)[-1] in (3, 4)
    assert {question.sequence for question in asked} <= {0, 3, 4}
    marked = questions(of(tokens, values), FUZZING, 20, 0.1, 0)
    # White space is never marked, so sequence 4 has nothing quiet to mark.
    assert {q.sequence for q in marked if not q.label} == {0}


@pytest.mark.parametrize("low", [0.5, 0.8, 1.0])
def test_what_is_active_is_never_asked_about_as_not_active(low: float) -> None:
    tokens = [[f"{row}{column}" for column in range(8)] for row in range(6)]
    values = [[1.0, 0.9, 0.7, 0.6, 0.5, 0.45, 0.3, 0.0]] * 3 + [[0.4] * 8, [0.5] * 8, [0.55] * 8]
    asked = questions(of(tokens, values), FUZZING, 20, low, 0)
    assert {question.label for question in asked} == {True, False}
    for question in asked:
        marked = np.asarray(values[question.sequence])[list(question.marked)]
        assert (marked >= 0.5).all() if question.label else (marked < 0.5).all()
    whole = questions(of(tokens, values), DETECTION, 20, low, 0)
    assert {question.sequence for question in whole if not question.label} == {3}


def test_the_largest_activation_is_that_of_all_sequences() -> None:
    tokens, values = [["a", "b"], ["c", "d"], ["e", "f"]], [[0.5, 0.0], [1.0, 0.0], [0.05, 0.02]]
    alone = of(tokens, values)
    labels = {q.sequence: q.label for q in questions(alone, DETECTION, 20, 0.1, 0)}
    assert labels[2] is False
    strong = LabeledSequences((("g",),), (np.asarray([10.0]),))
    with pytest.raises(FailedPrecondition, match="no sequence with an activation"):
        questions(ScoringSplit(strong, alone.scored), DETECTION, 20, 0.1, 0)
    # What is left out says what is strong all the same.
    more = of([*tokens, ["g", "h"]], [[0.4, 0.0], [0.04, 0.0], [1.0, 0.0], [0.04, 0.0]])
    with pytest.raises(FailedPrecondition, match="no sequence with an activation"):
        questions(more, DETECTION, 20, 0.1, 0, max_sequences=2)


@pytest.mark.parametrize("method", list(JudgingMethod))
@pytest.mark.parametrize(
    "given",
    [
        of([], []),
        of([["a", "b"]], [[0.0, 0.0]]),
        of([["a", "b"]], [[np.nan, np.nan]]),
        of([["a"], ["b"]], [[1.0], [1.0]]),
        of([[], ["", " "]], [[], [1.0, 1.0]]),
        of([["a", "b"]], [[-1.0, -2.0]]),
    ],
)
def test_nothing_to_judge_is_said(given: ScoringSplit, method: JudgingMethod) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        questions(given, method, 20, 0.1, 0)
    assert raised.value.reason == "NOTHING_TO_JUDGE"
    assert raised.value.field == "sequences.scored_sequences"


def test_records_without_random_samples_have_no_quiet_sequences_but_quiet_tokens() -> None:
    only_top = split(active=4, quiet=0)
    with pytest.raises(FailedPrecondition, match="low_activation_threshold"):
        questions(only_top, DETECTION, 20, 0.1, 0)
    assert len(questions(only_top, FUZZING, 20, 0.1, 0)) == 8


def test_marks_never_collide_with_the_text() -> None:
    assert Marks.absent_from("plain") == Marks("<<", ">>")
    assert Marks.absent_from("a >>> b") == Marks("[[", "]]")
    full = "<<>>[[]]{{}}«»⟦⟦⟧"
    marks = Marks.absent_from(full)
    assert marks.open not in full
    assert marks.close not in full
    prompt = JudgingPrompt("fuzzing-1", Marks("<<", ">>"))
    text = prompt.text(["a", " b", " c", "", "\ud800", "\x00"], [1, 2, 4])
    assert text == "a<< b c>><<\ufffd>>\ufffd"
    asked = prompt.prompt("{text} {explanation}\n{close}", ["{explanation}"], [0]).own[0].content
    assert "Description: {text} {explanation} {close}\n" in asked
    assert "Text: <<{explanation}>>\n" in asked
    shared = "".join(message.content for message in prompt.prompt("x", ["y"]).shared)
    assert "{open}" not in shared
    assert "<< cello>>" in shared


def right(asked: str) -> float:
    """What somebody answers who knows animals."""
    text = asked.split("Text:")[1]
    marked = re.findall("<<(.*?)>>", text)
    read = " ".join(marked) if marked else text
    return 0.9 if any(animal in read for animal in ANIMALS) else 0.2


@pytest.mark.parametrize("method", list(JudgingMethod))
async def test_a_language_model_judges(method: JudgingMethod) -> None:
    answers = PlantedAnswers()
    answers.yes = right
    async with chat_simulator(answers) as (simulator, _):
        result = await judged(JudgingTask("animals", split(), method, seed=5), simulator)
    assert result.scores.balanced_accuracy.value == 1.0
    assert result.scores.roc_auc.value == 1.0
    interval = result.scores.balanced_accuracy.interval
    assert interval is not None
    assert interval.low < 1.0
    provenance = result.provenance
    assert provenance.judge_model.startswith("planted at ")
    assert provenance.judge_prompt_version.startswith(f"{method}-1+")
    assert provenance.prompt_version == ""
    assert (provenance.seed, provenance.judgements) == (5, len(result.judgements))
    assert provenance.cost.calls == len(result.judgements) == len(answers.asked)
    for each in result.judgements:
        assert each.probability == pytest.approx(0.9 if each.label else 0.2)
    assert result.report.coverage == 1.0
    # Answers the wrong way round score as badly as can be.
    answers.yes = lambda asked: 1 - right(asked)
    async with chat_simulator(answers) as (simulator, _):
        wrong = await judged(JudgingTask("animals", split(), method), simulator)
    assert wrong.scores.balanced_accuracy.value == 0.0


async def test_judgements_of_a_sequence_are_drawn_together() -> None:
    answers = PlantedAnswers()
    answers.yes = lambda asked: (len(asked) * 7919 % 101) / 101
    async with chat_simulator(answers) as (simulator, _):
        result = await judged(JudgingTask("animals", split(8, 0), FUZZING, seed=2), simulator)
    labels = [float(each.label) for each in result.judgements]
    probabilities = [each.probability or 0.0 for each in result.judgements]
    own = [each.tokens for each in result.judgements]
    assert len(set(own)) < len(own)
    assert result.scores == classification_scores(labels, probabilities, own, 2)
    assert result.scores != classification_scores(labels, probabilities, range(len(own)), 2)


async def test_an_answer_that_cannot_be_read_is_an_issue_and_no_number() -> None:
    answers = PlantedAnswers()
    answers.yes = lambda asked: None if " lion" in asked else right(asked)
    task = JudgingTask("animals", split(), FUZZING, min_coverage=0.5)
    async with chat_simulator(answers) as (simulator, _):
        result = await judged(task, simulator)
        unread = [each for each in result.judgements if each.probability is None]
        assert len(unread) == result.report.malformed == 2
        assert all(each.issue for each in unread)
        assert result.report.tokens_by_reason == ((unread[0].issue, 2),)
        assert result.scores.balanced_accuracy.value == 1.0
        with pytest.raises(FailedPrecondition) as raised:
            await judged(JudgingTask("animals", split(), FUZZING), simulator)
        assert raised.value.reason == "COVERAGE_TOO_LOW"
        assert unread[0].issue in raised.value.message


async def test_a_server_that_fails_is_no_judgement() -> None:
    answers = PlantedAnswers()
    async with chat_simulator(answers) as (simulator, server):
        await judged(JudgingTask("animals", split(), DETECTION), simulator)
        server.fault = "500"
        with pytest.raises(Unavailable):
            await judged(JudgingTask("animals", split(), DETECTION), simulator)


async def test_simulated_activations_stand_in_for_a_judge() -> None:
    simulator = EmbeddingSimulator("embedding")
    words = ", ".join(f"'{animal}'" for animal in ANIMALS)
    for method in JudgingMethod:
        result = await judged(JudgingTask(f"the words {words}", split(), method), simulator)
        assert result.scores.balanced_accuracy.value == 1.0, result.judgements
        assert result.provenance.judge_model == result.provenance.judge_prompt_version == ""
        assert result.provenance.simulator_kind == "embedding"
        assert result.provenance.cost.calls > 0
        other = await judged(JudgingTask("the word 'stood'", split(), method), simulator)
        assert (other.scores.roc_auc.value or 0.0) < 0.9
    with pytest.raises(NeuropilError, match="explanation is empty"):
        await judged(JudgingTask(" ", split(), DETECTION), simulator)
    await simulator.close()


async def test_a_local_model_judges_and_computes_the_examples_once(tmp_path: Path) -> None:
    configuration = configurations()["gpt2"]
    configuration.n_positions = 4096
    model = LocalLanguageModel(str(save(configuration, tmp_path / "model")))
    simulator = CausalLmSimulator("local", model)
    result = await judged(JudgingTask("animals", split(), FUZZING), simulator)
    assert result.report.coverage == 1.0
    assert all(0 < (each.probability or 0) < 1 for each in result.judgements)
    assert result.provenance.judge_model.startswith("model@")
    cost = result.provenance.cost
    again = await judged(JudgingTask("animals", split(), FUZZING), simulator)
    # Instruction and examples are shared by all questions, and by the next task.
    assert cost.prompt_tokens_computed > again.provenance.cost.prompt_tokens_computed > 0
    assert again.provenance.cost.prompt_tokens_reused > 5 * (
        again.provenance.cost.prompt_tokens_computed
    )
    assert [each.probability for each in again.judgements] == pytest.approx(
        [each.probability for each in result.judgements], abs=1e-5
    )
    await simulator.close()
    await model.close()
