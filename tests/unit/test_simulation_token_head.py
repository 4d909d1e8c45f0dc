"""The token head: a token classifier with 11 labels as a simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from services.simulation.simulators.interface import SimulatedSequence, TokenOutcome
from services.simulation.simulators.token_head import TokenHeadSimulator
from shared.errors import InvalidArgument, ResourceExhausted, Unavailable
from tests.unit.token_head_folders import KINDS, byte_level, edit_config, word_piece, write_head

pytestmark = [pytest.mark.torch, pytest.mark.asyncio(loop_scope="module")]

EXPLANATION = "the lion"
LONG = [" the", " lion", " stood", " near", " the", " old", " river", ","] * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("head"), byte_level())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(folder: Path) -> AsyncIterator[TokenHeadSimulator]:
    simulator = TokenHeadSimulator("head", folder, "cpu")
    simulator.start()
    yield simulator
    await simulator.close()


async def simulated(
    simulator: TokenHeadSimulator,
    sequences: Sequence[Sequence[str]],
    explanation: str = EXPLANATION,
) -> list[SimulatedSequence]:
    return [result async for result in simulator.simulate(explanation, sequences)]


def reference(folder: Path, explanation: str, tokens: Sequence[str]) -> np.ndarray:
    """Probabilities [pieces of the sequence, 11], by transformers alone."""
    import torch
    from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    encoded = tokenizer(explanation, "".join(tokens), return_tensors="pt")
    own = [number for number, text in enumerate(encoded.sequence_ids(0)) if text == 1]
    with torch.inference_mode():
        logits = model(
            input_ids=encoded["input_ids"],
            token_type_ids=torch.tensor([encoded.encodings[0].type_ids]),
        ).logits
    probabilities: np.ndarray = torch.softmax(logits[0].double(), -1).numpy()[own]
    return probabilities


@pytest.mark.parametrize("kind", KINDS)
async def test_each_token_gets_what_transformers_gives_its_piece(kind: str, tmp_path: Path) -> None:
    folder = write_head(tmp_path, KINDS[kind]())
    simulator = TokenHeadSimulator(kind, folder, "cpu")
    tokens = ["the", " li", "on", " stood", ",", " of", " lions"]
    (result,) = await simulated(simulator, [tokens])
    await simulator.close()
    assert result.issues == ()
    aligned = simulator._loaded().tokenizer.align(tokens)
    expected = reference(folder, EXPLANATION, tokens)
    assert len(expected) == len(aligned.ids)
    np.testing.assert_allclose(
        result.probabilities, expected[aligned.piece_of_token], rtol=0, atol=1e-6
    )
    assert np.ptp(result.probabilities, axis=0).max() > 0.01


async def test_labels_may_stand_in_any_order(folder: Path, tmp_path: Path) -> None:
    shuffled = write_head(tmp_path, byte_level(), labels=[str(value) for value in range(11)])
    edit_config(shuffled, id2label={str(n): str(10 - n) for n in range(11)})
    first, second = TokenHeadSimulator("a", folder), TokenHeadSimulator("b", shuffled)
    (plain,), (reverse,) = [await simulated(s, [LONG[:8]]) for s in (first, second)]
    np.testing.assert_allclose(plain.probabilities, reverse.probabilities[:, ::-1], rtol=1e-12)
    assert first.model != second.model
    await first.close()
    await second.close()


async def test_many_explanations_run_in_one_batch(head: TokenHeadSimulator) -> None:
    explanations = ["the lion", "a river", "words", "the lion", "numbers from 0 to 10"]
    tokens = LONG[:12]
    together = [r async for r in head.simulate_explanations(explanations, tokens)]
    assert [r.cost.calls for r in together] == [1, 0, 0, 0, 0]
    for explanation, result in zip(explanations, together, strict=True):
        (alone,) = await simulated(head, [tokens], explanation)
        np.testing.assert_allclose(result.probabilities, alone.probabilities, atol=1e-6)
    assert np.abs(together[0].probabilities - together[1].probabilities).max() > 1e-3
    assert sum(r.cost.seconds for r in together) > 0


async def test_costs_count_every_piece_once(head: TokenHeadSimulator) -> None:
    results = await simulated(head, [LONG[:4], LONG[:12]])
    tokenizer = head._loaded().tokenizer
    explained = len(tokenizer.text_ids(EXPLANATION)) + tokenizer.template.pieces
    own = [len(tokenizer.align(result.tokens).ids) for result in results]
    assert results[0].cost.prompt_tokens_computed == 2 * explained + sum(own)
    assert results[1].cost.prompt_tokens_computed == 0
    assert sum(result.cost.calls for result in results) == 1
    assert all(result.cost.completion_tokens == 0 for result in results)


async def test_long_sequences_are_read_in_windows(head: TokenHeadSimulator) -> None:
    short, long = LONG[:16], LONG
    (alone,) = await simulated(head, [short])
    (windowed,) = await simulated(head, [long])
    assert windowed.issues == ()
    assert windowed.probabilities.shape == (len(long), 11)
    np.testing.assert_allclose(windowed.probabilities.sum(axis=1), 1)
    assert windowed.cost.prompt_tokens_computed > len(long)
    # The middle window of a text that repeats itself reads the same as the one after it.
    tokenizer = head._loaded().tokenizer
    room = 64 - tokenizer.template.pieces - len(tokenizer.text_ids(EXPLANATION))
    own = len(tokenizer.align(long).ids)
    assert own > 3 * room
    (again,) = await simulated(head, [long])
    np.testing.assert_array_equal(again.probabilities, windowed.probabilities)
    assert alone.probabilities.shape == (16, 11)


async def test_a_window_is_the_pair_alone(head: TokenHeadSimulator, folder: Path) -> None:
    (windowed,) = await simulated(head, [LONG])
    tokenizer = head._loaded().tokenizer
    room = 64 - tokenizer.template.pieces - len(tokenizer.text_ids(EXPLANATION))
    # One piece a token here, so the first window is the first `room` tokens.
    aligned = tokenizer.align(LONG)
    first = [t for t, piece in enumerate(aligned.piece_of_token) if piece < room - room // 4]
    cut = max(t for t, piece in enumerate(aligned.piece_of_token) if piece < room)
    expected = reference(folder, EXPLANATION, LONG[: cut + 1])
    if len(expected) == room:
        np.testing.assert_allclose(
            windowed.probabilities[first], expected[aligned.piece_of_token[first]], atol=1e-6
        )
    else:
        pytest.fail("a token lies across the window's end; choose another explanation")


async def test_tokens_without_a_piece_are_reported(tmp_path: Path) -> None:
    simulator = TokenHeadSimulator("words", write_head(tmp_path, word_piece()), "cpu")
    results = await simulated(simulator, [["the", "\n\n", " lion", ""], [" ", "\t"]])
    await simulator.close()
    assert [issue.position for issue in results[0].issues] == [1, 3]
    assert {issue.outcome for issue in results[0].issues} == {TokenOutcome.MISSING}
    assert not results[0].probabilities[[1, 3]].any()
    assert results[0].report.coverage == 0.5
    assert np.isnan(results[0].simulation().expected_activations[1])
    assert results[1].report.coverage == 0
    assert results[1].cost.calls == 0


async def test_an_explanation_longer_than_the_model_reads(head: TokenHeadSimulator) -> None:
    with pytest.raises(ResourceExhausted, match=r"pieces .* reads \d+ at most") as caught:
        await simulated(head, [[" the"]], "lion " * 60)
    assert (caught.value.field, caught.value.reason) == ("explanation", "EXPLANATION_TOO_LONG")
    with pytest.raises(ResourceExhausted) as caught:
        async for _ in head.simulate_explanations(["lion", "lion " * 60, "god"], [" the"]):
            pass
    assert caught.value.field == "explanations[1]"


@pytest.mark.parametrize(
    ("explanation", "sequences"), [(" ", [["a"]]), ("the lion", [["a"], []])], ids=["empty", "none"]
)
async def test_what_no_simulator_can_do_is_refused(
    head: TokenHeadSimulator, explanation: str, sequences: list[list[str]]
) -> None:
    with pytest.raises(InvalidArgument):
        await simulated(head, sequences, explanation)
    with pytest.raises(InvalidArgument):
        async for _ in head.simulate_explanations([], ["a"]):
            pass


async def test_odd_tokens_are_answered(head: TokenHeadSimulator) -> None:
    tokens = [
        "\ud83d",
        "\ude00",
        "\0",
        "<|endoftext|>",
        "</s>",
        "日本",
        "\ufffd",
        "\r\n",
        "x" * 5000,
    ]
    (result,) = await simulated(head, [tokens])
    assert result.issues == ()
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1)


async def test_numbers_that_are_not_finite_are_malformed(tmp_path: Path) -> None:
    import torch

    folder = write_head(tmp_path, byte_level())
    simulator = TokenHeadSimulator("head", folder, "cpu")
    classifier = simulator._loaded()
    with torch.no_grad():
        classifier.model.classifier.bias[3] = float("inf")
    (result,) = await simulated(simulator, [["the", " lion"]])
    await simulator.close()
    assert [issue.outcome for issue in result.issues] == [TokenOutcome.MALFORMED] * 2
    assert not result.probabilities.any()
    assert result.report.tokens_by_reason == (("the model computed no finite number", 2),)


def copy(folder: Path, to: Path) -> None:
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _two_labels(folder: Path) -> None:
    edit_config(folder, id2label={"0": "no", "1": "yes"})


def _odd_labels(folder: Path) -> None:
    edit_config(folder, id2label={str(n): f"LABEL_{n}" for n in range(11)})


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')


def _large_tokenizer(folder: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def _no_classifier(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "classifier" not in name}
    save_file(kept, path, metadata={"format": "pt"})


def _nan_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["classifier.weight"][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})


def _language_model(folder: Path) -> None:
    edit_config(folder, model_type="unheard_of")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_config, "config.json doesn't exist"),
        (_broken_config, "config.json can't be read"),
        (_two_labels, 'id2label has 2 labels; it must name 11, "0" to "10"'),
        (_odd_labels, "id2label has 11 labels"),
        (_no_weights, "has no weights"),
        (_cut_weights, "holds no token classifier"),
        (_no_tokenizer, "tokenizer.json doesn't exist"),
        (_broken_tokenizer, "tokenizer.json holds no tokenizer"),
        (_large_tokenizer, "its tokenizer has 321 pieces"),
        (_no_classifier, r"lacks weights, classifier\.\w+ first"),
        (_nan_weights, "classifier.weight has weights that are no finite numbers"),
        (_language_model, "holds no token classifier"),
    ],
)
async def test_broken_folders_say_what_is_wrong(
    spoil: object, message: str, folder: Path, tmp_path: Path
) -> None:
    assert callable(spoil)
    copy(folder, tmp_path)
    spoil(tmp_path)
    simulator = TokenHeadSimulator("head", tmp_path, "cpu")
    simulator.start()
    with pytest.raises(Unavailable, match=message) as caught:
        await simulated(simulator, [["a"]])
    assert caught.value.reason == "MODEL_NOT_LOADED"
    assert simulator.state.startswith("failed: ")
    # What failed is tried again, but not by each of the calls that waited.
    copy(folder, tmp_path)
    with pytest.raises(Unavailable, match=message):
        await simulated(simulator, [["a"]])
    simulator._attempts._held_until = 0.0
    assert len(await simulated(simulator, [["a"]])) == 1
    assert simulator.state == "ready"
    await simulator.close()


async def test_a_missing_folder_is_no_crash(tmp_path: Path) -> None:
    simulator = TokenHeadSimulator("head", tmp_path / "none")
    with pytest.raises(Unavailable, match="doesn't exist"):
        await simulated(simulator, [["a"]])
    await simulator.close()


async def test_it_says_what_it_reads(head: TokenHeadSimulator) -> None:
    await simulated(head, [["a"]])
    assert head.state == "ready"
    assert head.capabilities == ("reads 64 pieces at once; longer sequences in windows",)
    assert head.language_model is None


async def test_a_cancelled_call_stops_computing(head: TokenHeadSimulator) -> None:
    sequences = [LONG] * 200
    results = head.simulate(EXPLANATION, sequences)
    await anext(results)
    await results.aclose()
    waiting = asyncio.create_task(simulated(head, sequences))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    # The worker is free for the next caller.
    assert len(await asyncio.wait_for(simulated(head, [["a"]]), 60)) == 1
