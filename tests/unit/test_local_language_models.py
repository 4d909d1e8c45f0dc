"""Local language models: what is shared changes nothing of what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.simulation.errors import InvalidInput
from services.simulation.language_models.interface import GenerationOptions
from services.simulation.language_models.local.generation import choose_id, generate_steps
from services.simulation.language_models.local.model import LocalModel
from services.simulation.language_models.local.prefixes import Prefix, SegmentCache
from services.simulation.language_models.local.rows import (
    Row,
    WorkStopped,
    at_once,
    never,
    prompt_cost,
)
from shared.errors import ResourceExhausted
from tests.unit import small_language_models as small

pytestmark = pytest.mark.torch

FAMILIES = tuple(small.configurations())
COLUMNS = np.asarray([5, 9, 31, 200])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        name: small.save(config, root / name) for name, config in small.configurations().items()
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, LocalModel]:
    return {name: LocalModel.load(str(path), "cpu") for name, path in folders.items()}


def plain(folder: Path, ids: tuple[int, ...]) -> np.ndarray:
    """All logits of transformers' own model, without anything of ours."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.inference_mode():
        return model.eval()(torch.tensor([ids])).logits[0].double().numpy()


def random_ids(seed: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(2, small.VOCABULARY, count).tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefix_gives_transformers_own_logits(
    family: str, models: dict[str, LocalModel], folders: dict[str, Path]
) -> None:
    model = models[family]
    assert model.shares_prefix, model.shares_prefix_reason
    few_shot, explanation = random_ids(1, 30), random_ids(2, 7)
    prefix = model.prefix([few_shot, explanation])
    branch = random_ids(9, 2)
    rows = [
        Row(random_ids(3, 21), np.asarray([0, 4, 20]), COLUMNS),
        Row(random_ids(4, 5), np.asarray([4]), COLUMNS[:2]),
        Row(random_ids(5, 21), np.arange(21), COLUMNS, normalized=True),
        Row(random_ids(6, 17), np.asarray([2, 16, 9]), COLUMNS[::-1], branch),
        Row(random_ids(7, 1), np.asarray([0]), COLUMNS),
    ]
    for row, result in zip(rows, model.logits(prefix, rows), strict=True):
        whole = plain(folders[family], few_shot + explanation + row.ids)[37:]
        np.testing.assert_allclose(
            result.values, whole[row.positions][:, row.columns], atol=1e-4, rtol=1e-4
        )
        assert result.computed == row.computed
        assert result.reused == 37
        if row.normalized:
            sums = np.log(np.exp(whole[row.positions]).sum(axis=1))
            np.testing.assert_allclose(result.normalizers, sums, atol=1e-4)
        if row.branch:
            assert result.branch_values is not None
            for place, position in enumerate(row.positions):
                ids = few_shot + explanation + row.ids[: position + 1] + row.branch
                expected = plain(folders[family], ids)[-1][row.columns]
                np.testing.assert_allclose(result.branch_values[place], expected, atol=1e-4)


def test_prefixes_are_computed_once_and_counted(models: dict[str, LocalModel]) -> None:
    model = models["llama"]
    model.cache.clear()
    few_shot, first, second = random_ids(1, 30), random_ids(2, 7), random_ids(3, 9)
    made = model.prefix([few_shot, first])
    assert (made.computed, made.reused, made.calls, len(made)) == (37, 0, 2, 37)
    again = model.prefix([few_shot, (), first])
    assert (again.computed, again.reused, again.calls) == (0, 37, 0)
    other = model.prefix([few_shot, second])
    assert (other.computed, other.reused) == (9, 30)
    # The same ids after something else hold other positions: they aren't the same segment.
    elsewhere = model.prefix([second, few_shot])
    assert (elsewhere.computed, elsewhere.reused) == (39, 0)
    row = Row(random_ids(4, 6), np.asarray([5]), COLUMNS)
    cost = prompt_cost(other.computed, model.logits(other, [row, row]))
    assert (cost.computed, cost.reused) == (9 + 12, 2 * 39 - 9)


def test_long_segments_are_computed_in_pieces(models: dict[str, LocalModel]) -> None:
    model = models["mistral"]
    ids = random_ids(1, 90)
    row = Row(random_ids(2, 30), np.arange(30), COLUMNS)
    whole = model.logits(model.prefix([ids]), [row])[0]
    model.cache.clear()
    usual, model.batch_tokens = model.batch_tokens, 16
    try:
        prefix = model.prefix([ids])
        assert prefix.calls == 6
        in_pieces = model.logits(prefix, [row, row])
    finally:
        model.batch_tokens = usual
    for result in in_pieces:
        np.testing.assert_allclose(result.values, whole.values, atol=1e-5)


def test_the_cache_is_bounded_in_bytes(models: dict[str, LocalModel]) -> None:
    usual, model = models["llama"].cache, models["llama"]
    one = model.prefix([random_ids(1, 10)]).segments[0].nbytes
    assert one == 3 * 2 * 2 * 10 * 8 * 4  # layers, keys and values, heads, ids, size, bytes
    model.cache = SegmentCache(3 * one)
    try:
        few_shot = random_ids(1, 10)
        for seed in range(2, 8):
            prefix = model.prefix([few_shot, random_ids(seed, 10)])
            assert prefix.reused == (10 if seed > 2 else 0), "what all share stays"
            assert model.cache.bytes_held <= 3 * one
            assert model.cache.bytes_held == one * len(model.cache)
        assert model.prefix([few_shot, random_ids(7, 10)]).computed == 0
        assert model.prefix([few_shot, random_ids(2, 10)]).computed == 10, "the oldest went"
        assert model.prefix([random_ids(9, 31)]).computed == 31
        assert model.prefix([random_ids(9, 31)]).computed == 31, "too large to be kept"
    finally:
        model.cache = usual


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=7),
    before=st.integers(0, 20),
    branch=st.integers(0, 2),
    seed=st.integers(0, 1000),
    family=st.sampled_from(["gpt2", "gemma2", "mistral"]),
)
def test_ragged_rows_are_each_what_they_are_alone(
    lengths: list[int],
    before: int,
    branch: int,
    seed: int,
    family: str,
    models: dict[str, LocalModel],
) -> None:
    model = models[family]
    draw = np.random.default_rng(seed)
    prefix = model.prefix([random_ids(seed, before)])
    rows = [
        Row(
            random_ids(seed + number, length),
            np.flatnonzero(draw.random(length) < 0.5),
            draw.integers(0, small.VOCABULARY - 10, 3),
            random_ids(seed, branch) if number % 2 else (),
        )
        for number, length in enumerate(lengths)
    ]
    together = model.logits(prefix, rows)
    model.shares_prefix = False
    try:
        for row, result in zip(rows, together, strict=True):
            alone = model.logits(Prefix(prefix.ids), [row])[0]
            np.testing.assert_allclose(result.values, alone.values, atol=1e-4)
            assert alone.reused == 0
            if row.branch:
                np.testing.assert_allclose(result.branch_values, alone.branch_values, atol=1e-4)
    finally:
        model.shares_prefix = True


def test_bfloat16_is_close_to_float32(folders: dict[str, Path]) -> None:
    model = LocalModel.load(str(folders["qwen3"]), "cpu", "bfloat16")
    assert model.shares_prefix, model.shares_prefix_reason
    row = Row(random_ids(2, 12), np.arange(12), np.arange(100))
    result = model.logits(model.prefix([random_ids(1, 20)]), [row])[0]
    expected = plain(folders["qwen3"], random_ids(1, 20) + row.ids)[20:, :100]
    assert np.abs(result.values - expected).max() < 0.1 * np.abs(expected).max()


def test_prompts_that_are_too_long_or_wrong_are_refused(models: dict[str, LocalModel]) -> None:
    model = models["gpt2"]
    row = Row(random_ids(1, 100), np.asarray([99]), COLUMNS)
    with pytest.raises(ResourceExhausted, match="257 tokens is longer than the 256") as refused:
        model.prefix([random_ids(1, 257)])
    assert refused.value.reason == "PROMPT_TOO_LONG"
    prefix = model.prefix([random_ids(1, 156)])
    model.logits(prefix, [row])
    with pytest.raises(ResourceExhausted, match="257 tokens"):
        model.logits(prefix, [Row(row.ids, row.positions, COLUMNS, (3,))])
    with pytest.raises(ResourceExhausted, match="260 tokens"):
        model.generate(prefix, row.ids, GenerationOptions(max_tokens=5))
    for wrong in (
        Row((), np.asarray([0]), COLUMNS),
        Row((5, small.VOCABULARY), np.asarray([0]), COLUMNS),
        Row((5, -1), np.asarray([0]), COLUMNS),
        Row((5, 6), np.asarray([2]), COLUMNS),
        Row((5, 6), np.asarray([-1]), COLUMNS),
        Row((5, 6), np.asarray([1]), np.asarray([small.VOCABULARY])),
    ):
        with pytest.raises(InvalidInput, match=r"rows\[0\]"):
            model.logits(Prefix(), [wrong])
    with pytest.raises(InvalidInput, match="outside of the vocabulary"):
        model.prefix([(small.VOCABULARY,)])


def test_work_stops_between_passes(models: dict[str, LocalModel]) -> None:
    model = models["gpt2"]
    usual, model.batch_tokens = model.batch_tokens, 10
    rows = [Row(random_ids(n, 10), np.asarray([9]), COLUMNS) for n in range(6)]
    before = model.calls
    try:
        with pytest.raises(WorkStopped):
            model.logits(Prefix(), rows, lambda: model.calls >= before + 2)
        assert model.calls == before + 2
    finally:
        model.batch_tokens = usual


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_are_transformers_own(
    family: str, models: dict[str, LocalModel], folders: dict[str, Path]
) -> None:
    import torch
    import transformers

    model = models[family]
    ids = random_ids(11, 25)
    written, finished = model.generate(
        model.prefix([ids[:20]]), ids[20:], GenerationOptions(max_tokens=24)
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folders[family], attn_implementation="eager"
    )
    text = theirs.generate(
        torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=1, use_cache=False
    )[0, 25:].tolist()
    assert finished == (1 in text)
    assert list(written) == [token for token in text if token != 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_are_written_together_are_what_each_is_alone(
    family: str, models: dict[str, LocalModel]
) -> None:
    model = models[family]
    prefix = model.prefix([random_ids(1, 15)])
    prompts = [random_ids(2, 3), random_ids(3, 11), random_ids(2, 3), random_ids(4, 1)]
    options = [
        GenerationOptions(max_tokens=count, temperature=temperature, seed=seed)
        for seed, (count, temperature) in enumerate([(9, 1.0), (14, 0.0), (3, 0.7), (12, 1.0)])
    ]
    before = model.calls
    together, calls = at_once(generate_steps(model, prefix, prompts, options), never)
    longest = max(len(text.ids) + text.finished for text in together)
    assert model.calls - before == calls == 3 + longest - 1
    for text, prompt, each in zip(together, prompts, options, strict=True):
        assert (text.ids, text.finished) == model.generate(prefix, prompt, each)


def test_drawn_texts_follow_their_seed_and_temperature(models: dict[str, LocalModel]) -> None:
    model = models["llama"]
    ids = random_ids(1, 9)

    def draw(seed: int, temperature: float = 1.0) -> tuple[int, ...]:
        options = GenerationOptions(max_tokens=12, temperature=temperature, seed=seed)
        return model.generate(Prefix(), ids, options)[0]

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1
    assert draw(1, 1e-4) == draw(2, 1e-4) == draw(0, 0.0)


@pytest.mark.parametrize("temperature", [1e-300, 1e-310, 5e-324])
def test_the_lowest_temperatures_draw_the_most_probable(temperature: float) -> None:
    import torch

    logits = torch.tensor([1.0, 5.0, 2.0, -3.0])
    assert choose_id(logits, temperature, np.random.default_rng(0)) == 1


def test_draws_have_the_models_probabilities() -> None:
    import torch

    logits = torch.tensor([0.0, 1.0, -2.0, 0.5])
    generator = np.random.default_rng(3)
    drawn = [choose_id(logits, 0.5, generator) for _ in range(20_000)]
    expected = torch.softmax(logits.double() / 0.5, 0).numpy()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / len(drawn), expected, atol=0.01)


def test_a_model_of_another_kind_computes_the_whole_prompt(tmp_path: Path) -> None:
    import transformers

    config = transformers.BloomConfig(
        vocab_size=small.VOCABULARY, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0
    )
    folder = small.save(config, tmp_path, scale=1.0)
    model = LocalModel.load(str(folder), "cpu")
    assert not model.shares_prefix
    assert model.shares_prefix_reason
    prefix = model.prefix([random_ids(1, 12)])
    assert (prefix.computed, prefix.reused) == (0, 0)
    row = Row(random_ids(2, 8), np.asarray([3, 7]), COLUMNS, (7, 8), normalized=True)
    result = model.logits(prefix, [row])[0]
    whole = plain(folder, prefix.ids + row.ids)[12:]
    np.testing.assert_allclose(result.values, whole[[3, 7]][:, COLUMNS], atol=1e-4)
    sums = np.log(np.exp(whole[[3, 7]]).sum(axis=1))
    np.testing.assert_allclose(result.normalizers, sums, atol=1e-4)
    assert result.branch_values is not None
    assert result.branch_normalizers is not None
    branch = plain(folder, prefix.ids + row.ids[:4] + row.branch)[-1]
    np.testing.assert_allclose(result.branch_values[0], branch[COLUMNS], atol=1e-4)
    assert (result.computed, result.reused) == (20 + 18 + 22, 0)
    written, _ = model.generate(prefix, row.ids, GenerationOptions(max_tokens=3))
    assert written[0] == int(np.argmax(whole[-1]))


def test_layers_that_see_by_other_rules_are_not_shared(tmp_path: Path) -> None:
    """A position code that depends on the prompt's length, and a window nobody tells of."""
    import transformers

    config = small.configurations()["llama"].to_dict()
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = LocalModel.load(
        str(small.save(transformers.LlamaConfig(**config), tmp_path / "dynamic")), "cpu"
    )
    assert "length of the prompt" in model.shares_prefix_reason
    # Llama ignores it; a model that doesn't say what its layers see isn't trusted with it.
    config = small.configurations()["llama"]
    config.sliding_window = 4
    model = LocalModel.load(str(small.save(config, tmp_path / "window")), "cpu")
    assert "doesn't say what it sees" in model.shares_prefix_reason
