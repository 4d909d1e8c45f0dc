"""The causal_lm simulator against a plain forward pass of transformers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.simulation.prompts.simulation import (
    AllAtOncePrompt,
    OneAtATimePrompt,
    simulation_prompt,
)
from services.simulation.simulators import sequence_rows
from services.simulation.simulators.causal_lm import CausalLmSimulator
from services.simulation.simulators.interface import TokenOutcome
from services.simulation.simulators.sequence_rows import NO_PLACE, OneAtATimeRows
from services.simulation.simulators.token_pieces import (
    READ_AS_COMMAND,
    PieceIds,
    PieceTokenizer,
)
from tests.unit.simulation_causal_lm_calls import (
    DEMO,
    EXPLANATION,
    SENTENCE,
    TOLERANCE,
    of_folder,
    simulated,
    small_models,
)
from tests.unit.simulation_tokenizers import KINDS, text_of

pytestmark = pytest.mark.torch


@dataclass
class Plain:
    """A model and a tokenizer as transformers gives them, and nothing of ours but the prompt."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, path: Path) -> Plain:
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
        return cls(model, transformers.AutoTokenizer.from_pretrained(path))

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Of everything that may follow on `ids`."""
        import torch

        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
        return torch.log_softmax(logits.double(), dim=-1).numpy()

    def values(self, ids: Sequence[int], pieces: PieceTokenizer) -> NDArray[np.float64]:
        """The probabilities of the values 0 to 10 after `ids`, written out value by value."""
        here = np.exp(self.log_probabilities(ids))
        value_ids = [pieces.piece(str(value)).ids for value in range(11)]
        weights = np.array([here[ids[0]] for ids in value_ids])
        if len(value_ids[10]) == 2:
            assert value_ids[10][0] == value_ids[1][0]
            after = np.exp(self.log_probabilities([*ids, value_ids[1][0]]))
            ten, end = after[value_ids[10][1]], after[pieces.piece("\n").ids[0]]
            weights[10] = weights[1] * ten / (ten + end)
            weights[1] = weights[1] * end / (ten + end)
        return weights / weights.sum()


def all_at_once_ids(
    pieces: PieceTokenizer, prompt: str, explanation: str, tokens: Sequence[str]
) -> list[list[int]]:
    """The whole prompt up to each hidden value."""
    prompted = simulation_prompt(prompt, AllAtOncePrompt)
    ids = list(pieces.beginning)
    for piece in prompted.shared + prompted.explained(explanation):
        ids += pieces.piece(piece).ids
    result = []
    for number, piece in enumerate(prompted.lines(tokens)):
        if number % 4 == 2:
            result.append(list(ids))
        ids += pieces.piece(piece).ids
    return result


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
async def demo() -> AsyncIterator[CausalLmSimulator]:
    simulator = of_folder(DEMO)
    yield simulator
    await simulator.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_probabilities_are_those_of_a_plain_forward_pass(
    kind: str, folders: dict[str, Path]
) -> None:
    plain = Plain.load(folders[kind])
    simulator = of_folder(folders[kind], prompt="few_shot-1")
    other = [" is", "漢", "", "<|endoftext|>", " 10"]
    first, second = await simulated(simulator, EXPLANATION, [SENTENCE, other])
    await simulator.close()
    pieces = PieceTokenizer.of_transformers(plain.tokenizer)
    for result, tokens in ((first, SENTENCE), (second, other)):
        bad = {issue.position for issue in result.issues}
        assert len(bad) < len(tokens) / 2
        places = all_at_once_ids(pieces, "few_shot-1", EXPLANATION, tokens)
        for position, ids in enumerate(places):
            row = result.probabilities[position]
            if position in bad:
                assert not row.any()
            elif position % 3 == 0:
                assert row == pytest.approx(plain.values(ids, pieces), abs=TOLERANCE)
    assert not first.issues or kind.startswith("WordPiece")
    if "SentencePiece" in kind or "byte" in kind:
        whole = places[-1][len(pieces.beginning) :]
        text = simulation_prompt("few_shot-1", AllAtOncePrompt).text(EXPLANATION, other).text
        backend = plain.tokenizer.backend_tokenizer
        assert text.startswith(text_of(backend, tuple(whole)))


async def test_the_demo_model_is_read_exactly(demo: CausalLmSimulator) -> None:
    plain = Plain.load(DEMO)
    pieces = PieceTokenizer.of_transformers(plain.tokenizer)
    (result,) = await simulated(demo, EXPLANATION, [SENTENCE])
    assert demo.prompt_version.startswith("compact-1+")
    assert not result.issues
    for row, ids in zip(
        result.probabilities,
        all_at_once_ids(pieces, "compact-1", EXPLANATION, SENTENCE),
        strict=True,
    ):
        assert row == pytest.approx(plain.values(ids, pieces), abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["byte level", "SentencePiece BPE"])
async def test_one_at_a_time_is_exact(kind: str, folders: dict[str, Path]) -> None:
    plain = Plain.load(folders[kind])
    simulator = of_folder(folders[kind], "one_at_a_time")
    (result,) = await simulated(simulator, EXPLANATION, [SENTENCE])
    await simulator.close()
    assert simulator.prompt_version.startswith("one_at_a_time-1+")
    pieces = PieceTokenizer.of_transformers(plain.tokenizer)
    prompt = simulation_prompt("one_at_a_time-1", OneAtATimePrompt)
    for position in (0, 1, 4, 8, len(SENTENCE) - 1):
        read = SENTENCE[: position + 1]
        texts = prompt.shared + prompt.explained(EXPLANATION) + prompt.question(read)
        ids = [*pieces.beginning, *(i for text in texts for i in pieces.piece(text).ids)]
        assert result.probabilities[position] == pytest.approx(
            plain.values(ids, pieces), abs=TOLERANCE
        )


async def test_few_prompts_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = of_folder(DEMO, "one_at_a_time")
    sequences = [["\ud83d", *SENTENCE, "\ud83d"], SENTENCE[:2]]
    await simulated(simulator, EXPLANATION, [[" a"]])
    at_once = await simulated(simulator, EXPLANATION, sequences)
    monkeypatch.setattr(sequence_rows, "_IDS_HELD", 40)
    in_parts = await simulated(simulator, EXPLANATION, sequences)
    await simulator.close()
    for one, two in zip(at_once, in_parts, strict=True):
        assert one.probabilities == pytest.approx(two.probabilities, abs=TOLERANCE)
        assert one.issues == two.issues
        assert one.cost.prompt_tokens_computed == two.cost.prompt_tokens_computed
        assert one.cost.prompt_tokens_reused == two.cost.prompt_tokens_reused
    assert in_parts[0].cost.calls > at_once[0].cost.calls == 1


@pytest.mark.parametrize("folder", ["demo", "byte level"])
async def test_only_own_tokens_are_computed(folder: str, folders: dict[str, Path]) -> None:
    path = DEMO if folder == "demo" else folders[folder]
    simulator = of_folder(path)
    sequences = [SENTENCE[:n] for n in (12, 5, 1, 9)]
    results = await simulated(simulator, EXPLANATION, sequences)
    again = await simulated(simulator, EXPLANATION, sequences)
    other = await simulated(simulator, "verbs", sequences)
    await simulator.close()
    model = simulator.language_model.model
    assert model is not None
    assert model.shares_prefix
    pieces = PieceTokenizer.of_transformers(model.tokenizer)
    prompt = simulation_prompt(simulator.prompt_version.split("+")[0], AllAtOncePrompt)
    own = [sum(len(pieces.piece(p).ids) for p in prompt.lines(tokens)) for tokens in sequences]
    shared = sum(len(pieces.piece(p).ids) for p in prompt.shared)
    explained = sum(len(pieces.piece(p).ids) for p in prompt.explained(EXPLANATION))
    prefix = shared + explained
    for result, needed in zip(again, own, strict=True):
        assert 0 < result.cost.prompt_tokens_computed <= 1.05 * needed
        assert result.cost.prompt_tokens_reused == prefix
    # What sequences share stands with the first, so the sums are exact.
    first = results[0].cost
    assert first.prompt_tokens_computed - again[0].cost.prompt_tokens_computed == prefix
    assert first.prompt_tokens_reused == 0
    assert [r.cost.prompt_tokens_computed for r in results[1:]] == [
        r.cost.prompt_tokens_computed for r in again[1:]
    ]
    verbs = sum(len(pieces.piece(p).ids) for p in prompt.explained("verbs"))
    assert other[0].cost.prompt_tokens_reused == shared
    assert other[0].cost.prompt_tokens_computed == again[0].cost.prompt_tokens_computed + verbs
    assert [r.cost.calls for r in results] == [3, 0, 0, 0]
    assert [r.cost.calls for r in again] == [1, 0, 0, 0]
    assert all(r.cost.seconds > 0 and r.cost.completion_tokens == 0 for r in results)
    for one, two in zip(results, again, strict=True):
        assert one.probabilities == pytest.approx(two.probabilities, abs=TOLERANCE)


async def test_a_sequence_is_the_same_alone_and_among_others(demo: CausalLmSimulator) -> None:
    sequences = [SENTENCE, SENTENCE[::-1], [" a"], SENTENCE * 2]
    together = await simulated(demo, EXPLANATION, sequences)
    for tokens, among in zip(sequences, together, strict=True):
        (alone,) = await simulated(demo, EXPLANATION, [tokens])
        assert alone.probabilities == pytest.approx(among.probabilities, abs=TOLERANCE)


async def test_how_many_tokens_run_together_changes_no_answer(demo: CausalLmSimulator) -> None:
    sequences = [SENTENCE, SENTENCE * 5]
    expected = await simulated(demo, EXPLANATION, sequences)
    little = of_folder(DEMO, batch_tokens=16)
    results = await simulated(little, EXPLANATION, sequences)
    for result, other in zip(results, expected, strict=True):
        assert result.probabilities == pytest.approx(other.probabilities, abs=TOLERANCE)
    assert little.capabilities == demo.capabilities
    await little.close()


async def test_long_sequences_are_read_in_windows_that_repeat_nothing(
    demo: CausalLmSimulator,
) -> None:
    tokens = SENTENCE * 5
    (result,) = await simulated(demo, EXPLANATION, [tokens])
    (again,) = await simulated(demo, EXPLANATION, [tokens])
    assert not result.issues
    assert result.probabilities.sum(axis=1) == pytest.approx(np.ones(len(tokens)))
    (first,) = await simulated(demo, EXPLANATION, [tokens[:12]])
    assert result.probabilities[:12] == pytest.approx(first.probabilities, abs=TOLERANCE)
    model = demo.language_model.model
    assert model is not None
    assert model.max_positions == 128
    pieces = PieceTokenizer.of_transformers(model.tokenizer)
    prompt = simulation_prompt("compact-1", AllAtOncePrompt)
    own = sum(len(pieces.piece(piece).ids) for piece in prompt.lines(tokens))
    assert again.cost.prompt_tokens_computed <= own
    # A window is predicted as a sequence of its own.
    ids, begins = 0, 0
    room = 128 - len(pieces.joined(prompt.shared + prompt.explained(EXPLANATION), "x"))
    for position, token in enumerate(tokens):
        line = len(pieces.joined(prompt.lines([token]), "x"))
        if ids + line - 2 > room:
            begins = position
            break
        ids += line
    assert begins
    (second,) = await simulated(demo, EXPLANATION, [tokens[begins:]])
    size = len(tokens) - begins
    assert result.probabilities[begins:] == pytest.approx(
        second.probabilities[:size], abs=TOLERANCE
    )


def test_one_at_a_time_a_long_text_is_cut_at_its_beginning() -> None:
    pieces = PieceTokenizer((DEMO / "tokenizer.json").read_text())
    rows = OneAtATimeRows(simulation_prompt("one_at_a_time-1", OneAtATimePrompt), pieces)
    tokens = [" king"] * 5 + ["=" * 4000] * 26 + [" said", " unto", ""]
    planned = [part for group in rows.groups([tokens], 4096) for _, part in group]
    assert not [issue for part in planned for issue in part.issues]
    lengths = [len(row.ids) for part in planned for row in part.rows]
    assert len(lengths) == len(tokens)
    # The text is there for each of the last tokens, though it is over what is encoded at once.
    assert min(lengths[-6:]) > 0.9 * max(lengths)


def test_one_at_a_time_a_text_that_reads_as_a_command_is_reported() -> None:
    class Commanding(PieceTokenizer):
        def text(self, text: str) -> PieceIds:
            return PieceIds((), READ_AS_COMMAND) if "<go>" in text else super().text(text)

    pieces = Commanding((DEMO / "tokenizer.json").read_text())
    rows = OneAtATimeRows(simulation_prompt("one_at_a_time-1", OneAtATimePrompt), pieces)
    planned = [part for group in rows.groups([["a", "<g", "o>", "b"]], 4096) for _, part in group]
    issues = {issue.position: issue.reason for part in planned for issue in part.issues}
    assert issues == {2: READ_AS_COMMAND, 3: READ_AS_COMMAND}


async def test_a_token_without_place_is_reported(demo: CausalLmSimulator) -> None:
    long = "".join(f" word{n}" for n in range(100))
    tokens = [" a", long, " b"]
    (result,) = await simulated(demo, EXPLANATION, [tokens])
    (issue,) = result.issues
    assert (issue.position, issue.outcome, issue.reason) == (1, TokenOutcome.MISSING, NO_PLACE)
    assert not result.probabilities[1].any()
    (alone,) = await simulated(demo, EXPLANATION, [[" b"]])
    assert result.probabilities[2] == pytest.approx(alone.probabilities[0], abs=TOLERANCE)
    assert (result.report.valid, result.report.missing) == (2, 1)
    one = of_folder(DEMO, "one_at_a_time")
    (result,) = await simulated(one, EXPLANATION, [tokens])
    await one.close()
    assert [issue.position for issue in result.issues] == [1]
    assert result.probabilities[2].sum() == pytest.approx(1.0)
