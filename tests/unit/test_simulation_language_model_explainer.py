"""The explainer that asks a language model: what it shows, and what of the answers it takes."""

from __future__ import annotations

from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import pytest

from services.simulation.explaining import language_model
from services.simulation.explaining.answers import NoExplanation, explanation_of
from services.simulation.explaining.evidence import TokenEvidence, TokenPairEvidence
from services.simulation.explaining.interface import ProposalOptions
from services.simulation.explaining.language_model import (
    NEXT_ONES,
    LanguageModelExplainer,
    strongest_pairs,
)
from services.simulation.language_models.interface import Generation
from services.simulation.language_models.local.language_model import LocalLanguageModel
from services.simulation.normalized_activations import normalize_activations
from services.simulation.prompts.explaining import (
    ShownSequence,
    token_pairs_prompt,
    tokens_prompt,
)
from services.simulation.prompts.token_pairs import PairMarks
from services.simulation.scoring.labeled_sequences import LabeledSequences
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs
from services.simulation.simulators.causal_lm import CausalLmSimulator
from services.simulation.simulators.embedding import EmbeddingSimulator
from shared.errors import FailedPrecondition, ResourceExhausted, Unavailable
from shared.formats.token_pairs import TokenPair, coordinates, flat_index
from tests.unit.planted_chat import PlantedAnswers, chat_simulator
from tests.unit.small_language_models import configurations, save

DEMO_MODEL = Path(__file__).resolve().parents[2] / "data/demo/model"


def sequences(*numbers: int) -> LabeledSequences:
    tokens = [tuple(f" t{number}w{place}" for place in range(100)) for number in numbers]
    values = [np.asarray([0.0] * 80 + [2.0, 4.0] + [0.0] * 18) for _ in numbers]
    return LabeledSequences(tuple(tokens), tuple(values))


EVIDENCE = TokenEvidence(sequences(1, 2, 3), sequences(7, 8, 9), "records")
PAIRS = LabeledTokenPairs(
    (("a", " b", " c\n"), ("d", " e", " f")),
    (np.asarray([1.0, 0, 4.0, 0, np.nan, 2.0]), np.asarray([0.0, 0, 0, 0, 0, 0])),
    (3, 3),
)


@pytest.mark.parametrize(
    ("text", "explanation"),
    [
        ("names of rivers", "names of rivers"),
        ("  Names of rivers.\n\nBecause they", "Names of rivers"),
        ('"names of rivers"', "names of rivers"),
        ("'Amen' and 'Selah'", "'Amen' and 'Selah'"),
        ("“it’s” and its forms", "“it’s” and its forms"),
        ("Explanation: the word 'is'", "the word 'is'"),
        ("Explanation:\nthe word 'is'", "the word 'is'"),
        ("<think>\n\n</think>\n\nnames of rivers", "names of rivers"),
        ("Okay, the unit ...\n</think>\nnames of rivers", "names of rivers"),
        ("Sure! Here is the explanation:\n\nnames of rivers", "names of rivers"),
        ("**Explanation:** names of rivers.", "names of rivers"),
        ("**names of rivers**", "names of rivers"),
        ("- names of rivers\n- names of lakes", "names of rivers"),
        ("```\nnames of rivers\n```", "names of rivers"),
        ("The unit reacts to: names of rivers", "names of rivers"),
        ("'**' and '*' in code", "'**' and '*' in code"),
        ("-ing forms and __init__", "-ing forms and __init__"),
        ("words such as 'a', 'b' ...", "words such as 'a', 'b' ..."),
        (
            "Wörter auf Deutsch, 日本語 👩‍👩‍👧".replace("\u200d", ""),
            "Wörter auf Deutsch, 日本語 👩👩👧",
        ),
        ("the the, of of: doubled words", "the the, of of: doubled words"),
        ("the word before :", "the word before :"),
    ],
)
def test_answers_become_sentences(text: str, explanation: str) -> None:
    assert explanation_of(Generation(text)) == explanation


@pytest.mark.parametrize(
    ("text", "finished", "reason"),
    [
        ("", True, "empty answer"),
        ("\n\n", True, "empty answer"),
        ('""', True, "answer without a word"),
        ("<think>\nOkay, the user wants", False, "thoughts that were cut off"),
        ("<think>\nOkay, the user wants", True, "thoughts that were cut off"),
        ("<think>names</think>", True, "empty answer"),
        ("Here is the explanation:", True, "introduction without an explanation"),
        ("Here it is:\nnames of riv", False, "cut off"),
        ("... !!", True, "answer without a word"),
        ("a word " * 60, True, "more than 300 characters"),
        ("of the of the of the of the rivers", True, "repeats itself"),
        ("ha ha ha ha", True, "repeats itself"),
        ("a b a b b a a c a b a b", True, "repeats itself"),
        ("names of rivers that", False, "cut off"),
        ("names\x07 of rivers", True, "signs that can't be shown"),
        ("names\tof rivers", True, "signs that can't be shown"),
    ],
)
def test_what_is_no_explanation_is_said(text: str, finished: bool, reason: str) -> None:
    with pytest.raises(NoExplanation, match=reason):
        explanation_of(Generation(text, finished))


async def test_several_candidates_are_ranked_and_each_comes_once() -> None:
    answers = PlantedAnswers()
    said = ["Rivers.", "", "names of lakes", "rivers", "x " * 400, "LAKES", "rivers", "rivers"]
    answers.text = lambda asked, seed: said[seed % 8]
    async with chat_simulator(answers) as (simulator, _):
        explainer = LanguageModelExplainer("llm", simulator)
        found = await explainer.propose(EVIDENCE, ProposalOptions(count=4))
        assert [e.text for e in found.explanations] == ["Rivers", "names of lakes", "LAKES"]
        assert [e.provenance.seed for e in found.explanations] == [0, 2, 5]
        assert {e.provenance.temperature for e in found.explanations} == {1.0}
        reasons = [issue.reason for issue in found.issues]
        assert reasons.count("the same as another answer") == 3
        assert "empty answer" in reasons
        assert len(answers.asked) == 8 == found.cost.calls
        assert [body["seed"] for body in answers.asked[:4]].count(0) == 1
        provenance = found.explanations[0].provenance
        assert provenance.model == explainer.model == simulator.language_model.version
        assert provenance.prompt_version.startswith("explain_tokens-1+")
        assert provenance.sequences_shown == 5
        assert found.dataset == "records"
        # One explanation: the most probable answer, asked for once.
        one = await explainer.propose(EVIDENCE, ProposalOptions(count=1, seed=2))
        assert [e.text for e in one.explanations] == ["names of lakes"]
        assert one.explanations[0].provenance.temperature == 0.0
        assert answers.asked[-1]["temperature"] == 0.0
        cold = await explainer.propose(EVIDENCE, ProposalOptions(count=5, temperature=0.0))
        assert cold.cost.calls == 1


def test_answers_end_where_the_next_example_would_begin() -> None:
    shown = [ShownSequence.normalized(["a"], np.asarray([1.0]), 2.0)]
    asked = [tokens_prompt("explain_tokens-1", shown).messages]
    asked.append(token_pairs_prompt("explain_token_pairs-1", [], PairMarks()).messages)
    for messages, stop in zip(asked, NEXT_ONES, strict=True):
        text = "".join(message.content for message in messages)
        assert text.count(stop) >= 3


async def test_seeds_begin_again_after_the_largest() -> None:
    answers = PlantedAnswers()
    answers.text = lambda asked, seed: f"rivers {seed}"
    async with chat_simulator(answers) as (simulator, _):
        explainer = LanguageModelExplainer("llm", simulator)
        found = await explainer.propose(EVIDENCE, ProposalOptions(count=3, seed=2**63 - 2))
    assert [e.provenance.seed for e in found.explanations] == [2**63 - 2, 2**63 - 1, 0]
    assert [e.text for e in found.explanations] == [
        f"rivers {e.provenance.seed}" for e in found.explanations
    ]


async def test_only_the_train_split_is_shown_around_its_peak() -> None:
    answers = PlantedAnswers()
    async with chat_simulator(answers) as (simulator, _):
        explainer = LanguageModelExplainer("llm", simulator)
        await explainer.propose(EVIDENCE, ProposalOptions(max_sequences=2))
    (asked,) = (body["messages"][-1]["content"] for body in answers.asked)
    assert asked.count("<start>\n") == 2
    assert " t1w80\t5\n t1w81\t10\n" in asked
    assert " t2w81\t10\n" in asked
    assert "t3w" not in asked
    assert "t7w" not in asked
    assert " t1w0\t" not in asked
    assert asked.endswith("<end>\nExplanation:\n")
    assert len(asked.splitlines()) == 2 * (64 + 2) + 2


async def test_heads_are_shown_by_marked_pairs() -> None:
    answers = PlantedAnswers()
    answers.text = lambda asked, seed: "from c to a"
    async with chat_simulator(answers) as (simulator, _):
        explainer = LanguageModelExplainer("llm", simulator)
        found = await explainer.propose(
            TokenPairEvidence(PAIRS, LabeledTokenPairs()), ProposalOptions()
        )
    assert found.explanations[0].provenance.prompt_version.startswith("explain_token_pairs-1+")
    asked = answers.asked[-1]["messages"][-1]["content"]
    # The pair that isn't finite takes no part.
    assert "a[[** b**]] c\\n\t10\na b[[** c\\n**]]\t5\n[[**a**]] b c\\n\t2\nExplanation:\n" in asked
    # The sequence without activity isn't shown, and doesn't count.
    assert found.explanations[0].provenance.sequences_shown == 1
    # Where the text has such signs itself, others mark the pairs, in the examples too.
    signs = LabeledTokenPairs((("x[[", "**", "]]"),), (np.asarray([0.0, 4.0, 0, 0, 0, 0]),), (3,))
    async with chat_simulator(answers) as (simulator, _):
        explainer = LanguageModelExplainer("llm", simulator)
        await explainer.propose(TokenPairEvidence(signs, LabeledTokenPairs()), ProposalOptions())
    *shared, asked = (message["content"] for message in answers.asked[-1]["messages"])
    assert "@@x[[@@{{**}}]]\t10\n" in asked
    assert not any("[[" in text or "**" in text for text in shared)
    assert "{{it}}" in shared[1]


def test_pairs_that_are_far_apart_are_shown_by_their_ends() -> None:
    length, cap = 1000, 700
    tokens = tuple(f" w{place}" for place in range(length))
    values = np.zeros(len(coordinates(length, cap)[0]))
    for strength, attending, attended in ((5.0, 999, 0), (4.0, 990, 699), (3.0, 20, 19)):
        values[flat_index(TokenPair(attending, attended), length, cap)] = strength
    values[-1] = np.inf
    head = LabeledTokenPairs((tokens, ()), (values, np.zeros(0)), (cap, 0))
    passages, sequences = strongest_pairs(head, PairMarks())
    assert sequences == 1
    assert [passage.strength for passage in passages] == [10, 8, 6]
    near = "".join(f" w{place}" for place in range(1, 9))
    far = "".join(f" w{place}" for place in range(983, 999))
    assert passages[0].text == f"** w0**{near} ...{far}[[ w999]]"
    assert "** w699** w700" in passages[1].text
    assert " w707 ... w974" in passages[1].text
    assert "[[ w990]] w991" in passages[1].text
    near = "".join(f" w{place}" for place in range(3, 19))
    after = "".join(f" w{place}" for place in range(21, 29))
    assert passages[2].text == f"{near}** w19**[[ w20]]{after}"


def test_the_strongest_pairs_come_first_and_of_equal_ones_the_first() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = generator.integers(-1, 4, 10).astype(np.float64)
        values[generator.integers(10)] = np.nan
        strength = np.where(np.isfinite(values), values, -np.inf)
        order = np.argsort(-strength, kind="stable")[:3]
        pairs = LabeledTokenPairs((tuple("abcd"),), (values,), (4,))
        attending, attended = (each[order] for each in coordinates(4, 4))
        expected = [
            PairMarks().around("abcd", source, target)
            for source, target, index in zip(attending, attended, order, strict=True)
            if strength[index] > 0
        ]
        assert [passage.text for passage in strongest_pairs(pairs, PairMarks())[0]] == expected


async def test_other_calls_go_on_while_a_prompt_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = PlantedAnswers()
    threads = []

    def normalized(*given: Any) -> Any:
        threads.append(get_ident())
        return normalize_activations(*given)

    monkeypatch.setattr(language_model, "normalize_activations", normalized)
    async with chat_simulator(answers) as (simulator, _):
        explainer = LanguageModelExplainer("llm", simulator)
        await explainer.propose(TokenPairEvidence(PAIRS, LabeledTokenPairs()), ProposalOptions())
    assert threads
    assert get_ident() not in threads


def test_text_cannot_pass_for_another_line() -> None:
    shown = ShownSequence.normalized(
        ["a\t10\n", "\ud800", "", "\\n"], np.asarray([1.0, np.nan, -5.0, np.inf]), 2.0
    )
    assert shown.activations == (5, None, 0, None)
    asked = tokens_prompt("explain_tokens-1", [shown]).own[0].content
    lines = asked.split("<start>\n")[1].split("<end>")[0].splitlines()
    assert lines == ["a\\t10\\n\t5", "\ufffd\tunknown", "\t0", "\\\\n\tunknown"]


async def test_no_answer_that_is_an_explanation_is_an_error_with_the_reasons() -> None:
    answers = PlantedAnswers()
    answers.text = lambda asked, seed: "" if seed % 2 else "rivers that[cut]"
    async with chat_simulator(answers) as (simulator, server):
        explainer = LanguageModelExplainer("llm", simulator)
        with pytest.raises(FailedPrecondition) as raised:
            await explainer.propose(EVIDENCE, ProposalOptions(count=2))
        assert raised.value.reason == "NO_EXPLANATION"
        assert "answer that was cut off (2), empty answer (2)" in raised.value.message
        for activations in (np.zeros(100), np.full(100, np.nan)):
            train = LabeledSequences(sequences(1).tokens, (activations,))
            with pytest.raises(FailedPrecondition) as raised:
                await explainer.propose(TokenEvidence(train, LabeledSequences()), ProposalOptions())
            assert raised.value.reason == "NOTHING_TO_EXPLAIN"
        server.fault = "500"
        with pytest.raises(Unavailable):
            await explainer.propose(EVIDENCE, ProposalOptions(count=3))


async def test_a_simulator_without_a_language_model_cannot_explain() -> None:
    simulator = EmbeddingSimulator("embedding")
    explainer = LanguageModelExplainer("llm", simulator)
    assert explainer.model == ""
    with pytest.raises(FailedPrecondition) as raised:
        await explainer.propose(EVIDENCE, ProposalOptions())
    assert raised.value.reason == "NO_LANGUAGE_MODEL"
    await simulator.close()


async def test_an_explainer_is_ready_where_its_model_is(tmp_path: Path) -> None:
    # The simulator's prompt is longer than the model reads; that of explanations needs not be.
    configuration = configurations()["gpt2"]
    configuration.n_positions = 20
    model = LocalLanguageModel(str(save(configuration, tmp_path / "model")))
    simulator = CausalLmSimulator("local", model)
    explainer = LanguageModelExplainer("llm", simulator)
    assert explainer.state == "loading"
    with pytest.raises(FailedPrecondition):
        [result async for result in simulator.simulate("a", [["b"]])]
    assert simulator.state.startswith("failed: ")
    assert explainer.state == "ready"
    await simulator.close()
    await model.close()


async def test_a_local_model_writes_the_same_each_time(tmp_path: Path) -> None:
    configuration = configurations()["gpt2"]
    configuration.n_positions, configuration.n_layer = 8192, 1
    model = LocalLanguageModel(str(save(configuration, tmp_path / "model")))
    simulator = CausalLmSimulator("local", model)
    explainer = LanguageModelExplainer("llm", simulator)
    outcomes = []
    for _ in range(2):
        try:
            found = await explainer.propose(EVIDENCE, ProposalOptions(max_sequences=1))
            outcomes.append([e.text for e in found.explanations])
        except FailedPrecondition as error:
            # Random weights write nonsense, which has to be told as such.
            outcomes.append([error.reason])
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) == 1
    local = model.model
    assert local is not None
    before = local.calls
    with pytest.raises(FailedPrecondition):
        await explainer.propose(EVIDENCE, ProposalOptions(count=2, max_sequences=1))
    # At most two turns of two texts, each a pass for the prompt and one for each next token.
    assert local.calls - before <= 2 * 80 + 1
    await simulator.close()
    await model.close()


async def test_a_model_that_reads_too_little_says_so() -> None:
    model = LocalLanguageModel(str(DEMO_MODEL))
    simulator = CausalLmSimulator("local", model, prompt="compact-1")
    explainer = LanguageModelExplainer("llm", simulator)
    with pytest.raises(ResourceExhausted) as raised:
        await explainer.propose(EVIDENCE, ProposalOptions())
    assert raised.value.reason == "PROMPT_TOO_LONG"
    await simulator.close()
    await model.close()
