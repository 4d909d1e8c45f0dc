"""The explainer without a model: planted properties, edge cases, and the demo's neurons."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest

from services.simulation.calibration.calibrations import CalibrationKind
from services.simulation.errors import InvalidInput
from services.simulation.explaining.context import ContextExplainer
from services.simulation.explaining.evidence import TokenEvidence, TokenPairEvidence
from services.simulation.explaining.interface import ProposalOptions, ProposedExplanations
from services.simulation.explaining.wording import listed, quote
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs, TokenPairSplit
from services.simulation.scoring.simulation_scoring import (
    ScoredExplanation,
    ScoringTask,
    score_explanation,
)
from services.simulation.simulators.cues import Cues
from services.simulation.simulators.embedding import EmbeddingSimulator
from services.simulation.simulators.words import WordSequence
from shared.errors import FailedPrecondition
from shared.formats.decoding import decode_neuron_record
from shared.formats.records import ActivationRecord
from shared.formats.token_pairs import coordinates

DEMO = Path(__file__).resolve().parents[2] / "data/demo/records/mlp"
WORDS = (
    "the old lion walked to the river in 1984 , and his brother was singing there .",
    "a lion sat under the tree ; the children of Egypt were walking to the well .",
    "in the morning she was reading a book to the king of Tyre , and 12 men slept .",
    "the printer of the house is slow , but the lion never bites his own brother .",
    "he went to school in Paris with 3 friends , who were laughing and talking .",
    "there is a stone in the river , and a wall of bricks before the house .",
)
SENTENCES = [[f" {word}" for word in sentence.split()] for sentence in WORDS]


def labeled(records: list[ActivationRecord]) -> LabeledSequences:
    return LabeledSequences(
        tuple(tuple(record.tokens) for record in records),
        tuple(np.asarray(record.activations, dtype=np.float64) for record in records),
    )


def planted(active: Callable[[list[str], int], float]) -> TokenEvidence:
    """Every other sentence is of the train split."""
    sequences = LabeledSequences(
        tuple(tuple(tokens) for tokens in SENTENCES),
        tuple(np.asarray([active(s, i) for i in range(len(s))], dtype=float) for s in SENTENCES),
    )
    return TokenEvidence(sequences.take([0, 2, 4]), sequences.take([1, 3, 5]))


def propose(
    evidence: TokenEvidence | TokenPairEvidence, count: int = 1, **options: int
) -> ProposedExplanations:
    explainer = ContextExplainer("context")
    return asyncio.run(explainer.propose(evidence, ProposalOptions(count=count, **options)))


def word(tokens: list[str], position: int) -> str:
    return tokens[position].strip()


@pytest.mark.parametrize(
    ("active", "explanation"),
    [
        (lambda s, i: 3.0 * (word(s, i) == "lion"), "the word 'lion'"),
        (
            lambda s, i: 2.0 * (word(s, i) in ("river", "brother")),
            ("the words 'river' and 'brother'", "the words 'brother' and 'river'"),
        ),
        (lambda s, i: float(word(s, i).endswith("ing")), "words that end in '-ing'"),
        (lambda s, i: float(word(s, i).isdigit()), "numbers"),
        (lambda s, i: float(word(s, i)[0].isupper()), "capitalized words"),
        (lambda s, i: float(word(s, i) == ","), ("commas", "the token ','")),
        (lambda s, i: float(i == 0), "the first token"),
        (lambda s, i: float(i > 0 and word(s, i - 1) == "of"), "the word after 'of'"),
        (lambda s, i: float(i > 0 and s[i - 1 : i + 1] == [" to", " the"]), "the phrase 'to the'"),
    ],
)
def test_what_is_planted_is_found(
    active: Callable[[list[str], int], float], explanation: str | tuple[str, ...]
) -> None:
    (best,) = propose(planted(active)).explanations
    assert best.text in ((explanation,) if isinstance(explanation, str) else explanation)
    assert best.provenance.train_correlation == pytest.approx(1.0)
    assert best.provenance.sequences_shown == 6
    assert (best.provenance.explainer, best.provenance.explainer_kind) == ("context", "context")
    # A simulator that reads the sentence literally finds the same tokens, and nothing besides.
    cues = Cues.from_explanation(best.text)
    assert not cues.says_more
    for tokens in SENTENCES:
        by_token, by_word = cues.match(WordSequence.from_tokens(tokens))
        assert [bool(active(tokens, i)) for i in range(len(tokens))] == (
            by_token | by_word
        ).tolist()


def test_the_answer_is_the_same_each_time_and_the_best_comes_first() -> None:
    evidence = planted(lambda s, i: len(word(s, i)) * (word(s, i)[0] in "lbr"))
    first, second = propose(evidence, 8), propose(evidence, 8, seed=7)
    assert [e.text for e in first.explanations] == [e.text for e in second.explanations]
    texts = [e.text for e in first.explanations]
    assert 1 < len(texts) <= 8
    assert len(set(texts)) == len(texts)
    one = propose(evidence).explanations[0]
    assert one.text == texts[0]


def test_parts_of_words_and_line_breaks_are_named() -> None:
    pieces = [[" Jer", "em", "iah", "\n", " said"], [" Jer", "icho", " fell", "\n", " x"]]
    jer = LabeledSequences(
        tuple(map(tuple, pieces)), tuple(np.asarray([4.0, 0, 0, 0, 0]) for _ in pieces)
    )
    texts = [e.text for e in propose(TokenEvidence(jer, LabeledSequences()), 5).explanations]
    assert "the word part 'jer'" in texts
    breaks = LabeledSequences(
        tuple(map(tuple, pieces)), tuple(np.asarray([0.0, 0, 0, 1, 0]) for _ in pieces)
    )
    texts = [e.text for e in propose(TokenEvidence(breaks, LabeledSequences())).explanations]
    assert texts == ["newlines"]


def test_no_sequence_that_is_scored_or_calibrated_on_is_looked_at() -> None:
    def sequences(*numbers: int) -> LabeledSequences:
        return LabeledSequences(
            tuple((f"t{number}", "x") for number in numbers),
            tuple(np.asarray([1.0, 0.0]) for _ in numbers),
        )

    top, random = sequences(*range(12)), sequences(4, *range(20, 28))
    # Of the quantiles, some are in splits, one is in train, and one comes twice.
    evidence = TokenEvidence.from_record(top, random, sequences(0, 1, 2, 21, 40, 40, 41), "d")
    split = ScoringSplit.from_record(top, random, "d")
    # Sequence 4 is in the train split, and among the random ones too.
    assert [tokens[0] for tokens in evidence.train.tokens] == ["t0", "t8"]
    assert [tokens[0] for tokens in evidence.others.tokens] == ["t40", "t41"]
    unseen = set(split.scored.tokens) | set(split.calibration.tokens)
    assert not unseen & set(evidence.train.tokens + evidence.others.tokens)


@pytest.mark.parametrize(
    ("tokens", "activations", "reason"),
    [
        ([], [], "NOTHING_TO_EXPLAIN"),
        ([["a", "b"]], [[0.0, -1.0]], "NOTHING_TO_EXPLAIN"),
        ([["a", "b"]], [[np.nan, np.inf]], "NOTHING_TO_EXPLAIN"),
        ([["a"]], [[1.0]], "NO_EXPLANATION"),
        ([["a", "b"]], [[2.0, 2.0]], "NO_EXPLANATION"),
        ([["", ""]], [[1.0, 0.0]], None),
        ([["\ud800", "\x00", "\u200b"]], [[1.0, 0.0, 0.0]], None),
        ([["'", '"', "“”`«»", "'\""]], [[3.0, 1.0, 2.0, 1.0]], None),
        ([[" 日本", "語", "👩‍👩‍👧", "é"]], [[0.0, 5.0, 1.0, np.nan]], None),
        ([["x" * 3000, " y"]], [[1.0, 0.0]], None),
        ([["a", "b"]], [[1e308, 5.0]], None),
        ([["a", "b"]], [[1e-320, 0.0]], None),
    ],
)
def test_odd_records_give_a_sentence_or_a_reason(
    tokens: list[list[str]], activations: list[list[float]], reason: str | None
) -> None:
    sequences = LabeledSequences(
        tuple(map(tuple, tokens)), tuple(np.asarray(each) for each in activations)
    )
    evidence = TokenEvidence(sequences, LabeledSequences())
    if reason is None:
        for explanation in propose(evidence, 3).explanations:
            assert explanation.text.strip()
    else:
        with pytest.raises(FailedPrecondition) as raised:
            propose(evidence)
        assert raised.value.reason == reason


def test_options_out_of_range_are_refused() -> None:
    for options, field in (
        ({"count": 0}, "count"),
        ({"count": 101}, "count"),
        ({"temperature": 3.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_sequences": -1}, "max_sequences"),
    ):
        with pytest.raises(InvalidInput) as raised:
            ProposalOptions(**options)
        assert raised.value.field == field


def test_at_most_so_many_sequences_are_looked_at() -> None:
    evidence = planted(lambda s, i: float(word(s, i) == "lion"))
    (best,) = propose(evidence, max_sequences=2).explanations
    assert best.provenance.sequences_shown == 2


def test_the_strongest_sequence_is_looked_at_whatever_its_length() -> None:
    long, short = (" x",) * 30_000 + (" y",), (" y", " x")
    peak = np.zeros(30_001)
    peak[-1] = 1.0
    sequences = LabeledSequences((long, short), (peak, np.asarray([1.0, 0.0])))
    (best,) = propose(TokenEvidence(sequences, sequences)).explanations
    assert best.text == "the word 'y'"
    assert best.provenance.sequences_shown == 1


def test_wording() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert [quote(text) for text in ("a", "it's", "'\"")] == ["'a'", '"it\'s"', "“'\"”"]


def heads(strength: Callable[[list[str], int, int], float], cap: int = 99) -> TokenPairEvidence:
    tokens, activations, caps = [], [], []
    for sentence in SENTENCES:
        own = min(cap, len(sentence))
        sources, targets = coordinates(len(sentence), own)
        pairs = zip(sources.tolist(), targets.tolist(), strict=True)
        activations.append(np.asarray([strength(sentence, a, b) for a, b in pairs]))
        tokens.append(tuple(sentence))
        caps.append(own)
    whole = LabeledTokenPairs(tuple(tokens), tuple(activations), tuple(caps))
    return TokenPairEvidence(whole.take([0, 2, 4]), whole.take([1, 3, 5]))


@pytest.mark.parametrize(
    ("strength", "explanation"),
    [
        (lambda s, a, b: float(b == a - 1), "attends to the token just before"),
        (lambda s, a, b: float(b == a), "attends to itself"),
        (lambda s, a, b: float(b == 0 and a > 0), "attends to the first token"),
        (lambda s, a, b: float(b < a and s[a] == s[b]), "attends to an earlier token that is"),
        (lambda s, a, b: float(s[b] == " lion"), "attends to 'lion'"),
        (lambda s, a, b: float(s[b] == " the" and s[a] == " ,"), "attends from ',' to 'the'"),
    ],
)
def test_what_a_head_attends_to_is_found(
    strength: Callable[[list[str], int, int], float], explanation: str
) -> None:
    (best,) = propose(heads(strength)).explanations
    assert best.text.startswith(explanation)
    assert best.provenance.train_correlation == pytest.approx(1.0)
    # Records with a cap hold the first attended-to tokens alone.
    for found in propose(heads(strength, cap=3), 3).explanations:
        assert found.text.startswith("attends ")


def test_heads_without_activity_are_refused() -> None:
    for value in (0.0, np.nan):
        with pytest.raises(FailedPrecondition) as raised:
            propose(heads(lambda s, a, b, value=value: value))  # type: ignore[misc]
        assert raised.value.reason == "NOTHING_TO_EXPLAIN"


def test_token_pairs_are_split_like_tokens() -> None:
    whole = heads(lambda s, a, b: 1.0).train
    top = whole + whole + whole  # nine sequences
    split = TokenPairSplit.from_record(top, whole, "d")
    assert len(split.scored) == 9 // 4 + 3 // 3
    evidence = TokenPairEvidence.from_record(top, whole, whole, "d")
    assert not set(evidence.train.tokens + evidence.others.tokens) & set(split.scored.tokens)
    with pytest.raises(InvalidInput) as raised:
        LabeledTokenPairs.from_columns(["a", "b"], [2], [2], np.zeros(4), "record.top_sequences")
    assert raised.value.field == "record.top_sequences.activations"
    with pytest.raises(InvalidInput) as raised:
        LabeledTokenPairs.from_columns(["a", "b"], [2], [], np.zeros(3), "record.top_sequences")
    assert raised.value.field == "record.top_sequences.attended_to_caps"


def test_proposals_predict_unseen_sequences_of_the_demo() -> None:
    """Found on the train split alone, nearly as good as the word that whole records peak at."""
    quoted = {"3/203": "ref", "2/58": "://", "3/101": "is", "1/118": "{", "1/76": "on"}

    async def scores() -> list[tuple[float, float]]:
        simulator = EmbeddingSimulator("embedding")
        explainer = ContextExplainer("context")
        found = []
        for neuron, peak in quoted.items():
            path = DEMO / f"{neuron}.json"
            record = decode_neuron_record(path.read_bytes(), str(path))
            top = labeled(record.most_positive_activation_records)
            random = labeled(record.random_sample)
            quantiles = reduce(add, map(labeled, record.random_sample_by_quantile or []))
            evidence = TokenEvidence.from_record(top, random, quantiles, "demo")
            proposed = await explainer.propose(evidence, ProposalOptions())
            split = ScoringSplit.from_record(top, random, "demo")
            own = []
            for text in (proposed.explanations[0].text, f"the word '{peak}'"):
                task = ScoringTask(text, split, CalibrationKind.LINEAR)
                async for event in score_explanation(task, simulator):
                    if isinstance(event, ScoredExplanation):
                        own.append(event.scores.overall.preferred or 0.0)
            found.append((own[0], own[1]))
        await simulator.close()
        return found

    found = asyncio.run(scores())
    proposed, by_hand = np.mean(found, axis=0)
    assert proposed > 0.6, found
    assert proposed > by_hand - 0.1, found
