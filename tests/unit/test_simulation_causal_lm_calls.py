"""Calls of the causal_lm simulator: what is refused, told, shared and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.simulation.errors import InvalidInput
from services.simulation.language_models.local.language_model import LocalLanguageModel
from services.simulation.language_models.local.model import LocalModel
from services.simulation.simulators.causal_lm import CausalLmSimulator, Method
from services.simulation.simulators.token_pieces import (
    NOT_TEXT,
    NOTHING_LEFT,
    UNKNOWN_TEXT,
    PieceTokenizer,
)
from shared.errors import ConfigurationError, FailedPrecondition, ResourceExhausted, Unavailable
from tests.unit.simulation_causal_lm_calls import (
    DEMO,
    EXPLANATION,
    SENTENCE,
    TOLERANCE,
    of_folder,
    simulated,
    small_models,
)
from tests.unit.simulation_tokenizers import KINDS, save_model, wordpiece

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_models(
        tmp_path_factory.mktemp("models"), "WordPiece with blanks", "SentencePiece BPE"
    )


@pytest.fixture
async def demo() -> AsyncIterator[CausalLmSimulator]:
    simulator = of_folder(DEMO)
    yield simulator
    await simulator.close()


async def test_a_sequence_of_nothing_readable_costs_nothing(demo: CausalLmSimulator) -> None:
    (result,) = await simulated(demo, EXPLANATION, [["\ud83d", "\udfff"]])
    assert [issue.reason for issue in result.issues] == [NOT_TEXT] * 2
    assert result.cost.calls == result.cost.prompt_tokens_computed == 0
    results = await simulated(demo, EXPLANATION, [["\ud83d"], [" a", "\ud83d"]])
    assert [r.cost.prompt_tokens_computed > 0 for r in results] == [False, True]
    assert all(r.cost.prompt_tokens_reused >= 0 for r in results)


async def test_tokens_that_a_tokenizer_cannot_write_are_reported(
    folders: dict[str, Path],
) -> None:
    simulator = of_folder(folders["WordPiece with blanks"])
    (result,) = await simulated(simulator, EXPLANATION, [["the", "漢", " ", "red"]])
    await simulator.close()
    assert [(i.position, i.reason) for i in result.issues] == [(1, UNKNOWN_TEXT), (2, NOTHING_LEFT)]
    assert result.probabilities.sum(axis=1) == pytest.approx([1, 0, 0, 1])


@pytest.mark.parametrize("method", ["all_at_once", "one_at_a_time"])
async def test_a_tokenizer_without_tabs_is_refused(method: Method, tmp_path: Path) -> None:
    simulator = of_folder(save_model(tmp_path, wordpiece(blanks=False)), method)
    with pytest.raises(FailedPrecondition, match="no ids for") as caught:
        await simulated(simulator, EXPLANATION, [SENTENCE])
    assert caught.value.reason == "TOKENIZER_NOT_SERVED"
    assert simulator.state.startswith("failed: the model's tokenizer has no ids for")
    assert simulator.capabilities == ()
    await simulator.close()


async def test_a_prompt_that_is_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    simulator = of_folder(DEMO, prompt="few_shot-1")
    with pytest.raises(FailedPrecondition, match=r"few_shot-1.* of the 128 tokens") as caught:
        await simulated(simulator, EXPLANATION, [SENTENCE])
    assert caught.value.reason == "CONTEXT_TOO_SHORT"
    assert simulator.state.startswith("failed: the prompt few_shot-1")
    await simulator.close()


async def test_an_explanation_that_leaves_no_room_is_refused(demo: CausalLmSimulator) -> None:
    with pytest.raises(ResourceExhausted, match="leaves no room") as caught:
        await simulated(demo, "colors of things " * 30, [SENTENCE])
    assert (caught.value.field, caught.value.reason) == ("explanation", "EXPLANATION_TOO_LONG")
    assert int(caught.value.metadata["tokens"]) > int(caught.value.metadata["limit"])
    with pytest.raises(ResourceExhausted) as caught:
        async for _ in demo.simulate_explanations([EXPLANATION, "colors of things " * 30], [" a"]):
            pass
    assert caught.value.field == "explanations[1]"


async def test_an_explanation_that_the_tokenizer_cannot_write_is_refused(
    tmp_path: Path,
) -> None:
    tokenizer = wordpiece(blanks=True)
    simulator = of_folder(save_model(tmp_path, tokenizer))
    with pytest.raises(InvalidInput, match="no ids for part of") as caught:
        await simulated(simulator, "漢字", [["the"]])
    assert (caught.value.field, caught.value.reason) == ("explanation", "TEXT_NOT_IN_VOCABULARY")
    await simulator.close()


async def test_bad_requests_are_refused(demo: CausalLmSimulator) -> None:
    with pytest.raises(InvalidInput, match="explanation is empty"):
        await simulated(demo, " ", [SENTENCE])
    with pytest.raises(InvalidInput, match="no tokens"):
        await simulated(demo, EXPLANATION, [[]])
    assert await simulated(demo, EXPLANATION, []) == []


async def test_bad_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no prompt 'nothing-1'"):
        of_folder(DEMO, prompt="nothing-1")
    with pytest.raises(ConfigurationError, match="method all_at_once, not one_at_a_time"):
        of_folder(DEMO, "one_at_a_time", prompt="few_shot-1")
    with pytest.raises(ConfigurationError, match="method chat, not"):
        of_folder(DEMO, prompt="chat-1")
    assert of_folder(DEMO, prompt="one_at_a_time-1").method == "one_at_a_time"
    missing = of_folder(tmp_path / "nothing")
    with pytest.raises(Unavailable, match="can't be loaded"):
        await simulated(missing, EXPLANATION, [SENTENCE])
    assert missing.state.startswith("failed: ")
    assert missing.prompt_version.startswith("few_shot-1+")
    await missing.close()


async def test_it_says_what_it_found_out(folders: dict[str, Path]) -> None:
    simulator = of_folder(folders["SentencePiece BPE"])
    assert (simulator.state, simulator.capabilities) == ("loading", ())
    await simulated(simulator, EXPLANATION, [[" a"]])
    assert simulator.state == "ready"
    said = " | ".join(simulator.capabilities)
    assert "all_at_once" in said
    assert "computed once" in said
    assert 'splits "10"' in said
    assert "@" in simulator.model
    await simulator.close()


async def test_concurrent_calls_answer_as_single_ones(demo: CausalLmSimulator) -> None:
    calls = [(f"things of kind {n}", [SENTENCE[n:], SENTENCE[: n + 1]]) for n in range(6)]
    together = await asyncio.gather(*(simulated(demo, e, s) for e, s in calls))
    for (explanation, sequences), results in zip(calls, together, strict=True):
        for tokens, result in zip(sequences, results, strict=True):
            assert list(result.tokens) == list(tokens)
        alone = await simulated(demo, explanation, sequences)
        for one, two in zip(results, alone, strict=True):
            assert one.probabilities == pytest.approx(two.probabilities, abs=TOLERANCE)


async def test_many_explanations_of_one_sequence_come_in_order(demo: CausalLmSimulator) -> None:
    explanations = ["colors", "verbs", "numbers"]
    results = [r async for r in demo.simulate_explanations(explanations, SENTENCE)]
    assert len(results) == 3
    for explanation, result in zip(explanations, results, strict=True):
        (alone,) = await simulated(demo, explanation, [SENTENCE])
        assert result.probabilities == pytest.approx(alone.probabilities, abs=TOLERANCE)


TOKENS = st.lists(
    st.one_of(st.text(max_size=4), st.sampled_from(["\t", "\n", "", "<|endoftext|>", "\ufffd"])),
    min_size=1,
    max_size=40,
)


@pytest.mark.parametrize("method", ["all_at_once", "one_at_a_time"])
def test_any_tokens_get_a_distribution_or_an_issue(method: Method) -> None:
    simulator = of_folder(DEMO, method)

    @settings(max_examples=12, deadline=None)
    @given(sequences=st.lists(TOKENS, min_size=1, max_size=3), explanation=st.text(max_size=20))
    def check(sequences: list[list[str]], explanation: str) -> None:
        results = asyncio.run(simulated(simulator, f"x{explanation}", sequences))
        for tokens, result in zip(sequences, results, strict=True):
            missing = [issue.position for issue in result.issues]
            expected = [float(position not in missing) for position in range(len(tokens))]
            assert result.probabilities.sum(axis=1) == pytest.approx(expected)
            assert (result.probabilities >= 0).all()

    check()
    asyncio.run(simulator.close())


async def test_leaving_the_iteration_stops_the_computation(demo: CausalLmSimulator) -> None:
    await simulated(demo, EXPLANATION, [[" a"]])
    model = demo.language_model.model
    assert model is not None
    sequences = [SENTENCE * 4] * 400
    async with aclosing(demo.simulate(EXPLANATION, sequences)) as results:
        async for _ in results:
            break
    left = model.calls
    await simulated(demo, EXPLANATION, [[" a"]])
    assert model.calls == left + 1
    begun = asyncio.Event()

    async def work() -> None:
        async for _ in demo.simulate(EXPLANATION, sequences):
            begun.set()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await simulated(demo, EXPLANATION, [[" a"]])
    ended = model.calls
    await simulated(demo, EXPLANATION, [[" a"]])
    assert model.calls == ended + 1


async def test_it_finds_out_without_a_call(tmp_path: Path) -> None:
    ready, refused = of_folder(DEMO), of_folder(DEMO, prompt="few_shot-1")
    for simulator in (ready, refused):
        simulator.start()
        # The model's thread has done what was submitted before.
        await asyncio.wrap_future(simulator.language_model.submit(nothing))
    assert ready.state == "ready"
    assert ready.prompt_version.startswith("compact-1+")
    assert len(ready.capabilities) == 3
    assert refused.state.startswith("failed: the prompt few_shot-1+")
    assert refused.capabilities == ()
    await ready.close()
    await refused.close()


def nothing(model: LocalModel) -> Generator[None, None, None]:
    yield


async def test_a_closed_simulator_is_unavailable() -> None:
    simulator = of_folder(DEMO)
    await simulator.close()
    with pytest.raises(Unavailable):
        await simulated(simulator, EXPLANATION, [SENTENCE])


async def test_one_model_serves_several_simulators() -> None:
    shared = LocalLanguageModel(str(DEMO))
    whole = CausalLmSimulator("whole", shared)
    single = CausalLmSimulator("single", shared, method="one_at_a_time")
    first, second = await asyncio.gather(
        simulated(whole, EXPLANATION, [SENTENCE]), simulated(single, EXPLANATION, [SENTENCE])
    )
    assert np.abs(first[0].probabilities - second[0].probabilities).max() > 1e-3
    assert whole.model == single.model
    await shared.close()


def test_tokenizers_that_split_what_prompts_hold_were_tested() -> None:
    pieces = {kind: PieceTokenizer(make().to_str()) for kind, make in KINDS.items()}
    split = {kind for kind in KINDS if len(pieces[kind].piece("10").ids) > 1}
    assert split == {"SentencePiece BPE", "byte level, digits apart"}
    assert len(pieces["byte level, digits apart"].piece("unknown").ids) > 1
    assert len(pieces["byte level"].piece("unknown").ids) == 1
