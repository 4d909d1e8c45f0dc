"""Choices and texts of a local model, and how its callers share its thread."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from services.simulation.errors import InvalidInput
from services.simulation.language_models.interface import (
    GenerationOptions,
    LanguageModel,
    Message,
    Prompt,
)
from services.simulation.language_models.local.choosing import choice_ids
from services.simulation.language_models.local.conversation import prompt_ids
from services.simulation.language_models.local.language_model import LocalLanguageModel
from services.simulation.language_models.local.model import LocalModel
from services.simulation.language_models.local.worker import DeviceWorker
from shared.errors import FailedPrecondition, ResourceExhausted, Unavailable
from tests.unit import small_language_models as small

pytestmark = pytest.mark.torch

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and refuse_system is defined %}"
    "{{ raise_exception('no system') }}{% endif %}"
    "[{{ m.role }}]\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
SHARED = (Message("system", "The lion walked to the river."),)


def prompts(*questions: str, shared: tuple[Message, ...] = SHARED) -> list[Prompt]:
    return [Prompt(shared, (Message("user", question),)) for question in questions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save(small.configurations()["gpt2"], tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture
async def plain(folder: Path) -> AsyncIterator[LocalLanguageModel]:
    model = LocalLanguageModel(str(folder), "cpu", batch_tokens=64)
    yield model
    await model.close()


def with_template(folder: Path, to: Path, template: str) -> LocalModel:
    shutil.copytree(folder, to)
    tokenizer = small.tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(to)
    return LocalModel.load(str(to), "cpu")


def probabilities_after(model: LocalModel, ids: tuple[int, ...]) -> np.ndarray:
    logits = model.after(ids).double().numpy()
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


async def test_choices_have_the_models_probabilities(plain: LocalLanguageModel) -> None:
    asked = prompts("Yes or no?", "The river", "1, 2,")
    found = await plain.choose(asked, ["Yes", "No", "3"])
    model = plain.model
    assert model is not None
    ids = [choice[0] for choice in choice_ids(model, ["Yes", "No", "3"])]
    for prompt, choice in zip(asked, found, strict=True):
        text = SHARED[0].content + prompt.own[0].content
        whole = (0, *model.tokenizer(text, add_special_tokens=False)["input_ids"])
        expected = probabilities_after(model, whole)[ids]
        np.testing.assert_allclose(choice.probabilities, expected / expected.sum(), atol=1e-5)
    again = await plain.choose(asked, ["Yes", "No"])
    tokens = [sum(map(len, prompt_ids(model, prompt))) for prompt in asked]
    for answers, computed_shared in ((found, True), (again, False)):
        cost = sum((answer.cost for answer in answers[1:]), answers[0].cost)
        shared = len(prompt_ids(model, asked[0])[0])
        computed = sum(tokens) - (2 if computed_shared else 3) * shared
        assert cost.prompt_tokens_computed == computed
        assert cost.prompt_tokens_reused == sum(tokens) - computed
        assert cost.calls == (2 if computed_shared else 1)


async def test_choices_of_several_ids_are_told_apart(plain: LocalLanguageModel) -> None:
    asked = prompts("1, 2, 3, ")[0]
    choices = ["1", "1 7", "stones of Yes", "2"]
    (found,) = await plain.choose([asked], choices)
    model = plain.model
    assert model is not None
    shared, own = prompt_ids(model, asked)
    joint = []
    for choice in choice_ids(model, choices):
        before, probability = shared + own, 1.0
        for token in choice:
            probability *= probabilities_after(model, before)[token]
            before += (token,)
        joint.append(probability)
    joint[0] -= joint[1]
    np.testing.assert_allclose(found.probabilities, np.array(joint) / sum(joint), rtol=1e-3)


async def test_callers_at_once_get_what_each_gets_alone(plain: LocalLanguageModel) -> None:
    questions = [[f"{caller} stones, {n} lions" for n in range(6)] for caller in range(4)]
    alone = [await plain.choose(prompts(*asked), ["Yes", "No"]) for asked in questions]
    calls = [asyncio.create_task(plain.choose(prompts(*a), ["Yes", "No"])) for a in questions]
    texts = asyncio.create_task(plain.generate(prompts("Yes?"), GenerationOptions(max_tokens=9)))
    await asyncio.sleep(0)
    calls[1].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    for number in (0, 2, 3):
        answer = answers[number]
        assert not isinstance(answer, BaseException)
        for choice, expected in zip(answer, alone[number], strict=True):
            assert choice.probabilities is not None
            assert expected.probabilities is not None
            np.testing.assert_array_equal(choice.probabilities, expected.probabilities)
    assert (await texts)[0].cost.completion_tokens > 0


async def test_choices_that_are_none_are_refused(plain: LocalLanguageModel) -> None:
    for choices in ([], ["Yes"], ["Yes", ""], ["Yes", "Yes"]):
        with pytest.raises(InvalidInput, match="choices"):
            await plain.choose(prompts("Yes?"), choices)
    assert await plain.choose([], ["Yes", "No"]) == []


async def test_a_prompt_that_is_too_long_is_refused(plain: LocalLanguageModel) -> None:
    with pytest.raises(ResourceExhausted, match="that the model reads"):
        await plain.choose(prompts("Q" * 300), ["Yes", "No"])
    with pytest.raises(ResourceExhausted, match="that the model reads"):
        await plain.generate(prompts("Yes?"), GenerationOptions(max_tokens=300))


async def test_texts_are_counted_and_cut(plain: LocalLanguageModel) -> None:
    options = GenerationOptions(max_tokens=20, temperature=1.0, seed=4)
    first, second = await plain.generate(prompts("Yes?", "Yes?"), options)
    assert first.text != second.text, "each prompt has a seed of its own"
    again = await plain.generate(prompts("Yes?"), options)
    assert again[0].text == first.text
    assert first.cost.prompt_tokens_computed > second.cost.prompt_tokens_computed == 0
    assert again[0].cost.prompt_tokens_computed == 1, "the last token, whose logits are wanted"
    assert again[0].cost.prompt_tokens_reused == second.cost.prompt_tokens_reused - 1
    assert first.cost.completion_tokens <= 20
    stop = first.text[3:5]
    (cut,) = await plain.generate(
        prompts("Yes?"), GenerationOptions(max_tokens=20, temperature=1.0, seed=4, stop=(stop,))
    )
    assert cut.text == first.text[: first.text.find(stop)]
    assert cut.finished


async def test_calls_at_the_same_time_count_their_own_passes(plain: LocalLanguageModel) -> None:
    await plain.choose(prompts("Yes?"), ["Yes", "No"])
    assert plain.model is not None
    before = plain.model.calls
    questions = [f"{number} {'Yes? ' * 8}" for number in range(5)]
    answers = await asyncio.gather(
        plain.choose(prompts(*questions, shared=(Message("system", "Lions."),)), ["Yes", "No"]),
        *(
            plain.generate(
                prompts(question), GenerationOptions(max_tokens=5, temperature=1.0, seed=seed)
            )
            for seed, question in enumerate(questions)
        ),
    )
    costs = [answer.cost.calls for several in answers for answer in several]
    assert sum(costs) == plain.model.calls - before
    assert sum(costs[:5]) > 1


def test_a_model_that_may_think_first_is_told_not_to(folder: Path, tmp_path: Path) -> None:
    template = TEMPLATE + (
        "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
        "<think>\n\n</think>\n\n{% endif %}"
    )
    model = with_template(folder, tmp_path / "chat", template)
    shared, own = prompt_ids(model, prompts("Yes?")[0])
    assert model.tokenizer.decode(shared + own).endswith("[assistant]\n<think>\n\n</think>\n\n")


def test_a_chat_template_is_followed(folder: Path, tmp_path: Path) -> None:
    model = with_template(folder, tmp_path / "chat", TEMPLATE)
    shared, own = prompt_ids(model, prompts("Yes?")[0])
    text = "[system]\nThe lion walked to the river.\n[user]\nYes?\n[assistant]\n"
    whole = tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert shared + own == whole
    assert len(shared) > len(own) / 2
    begun = Prompt(SHARED, (Message("user", "Yes?"), Message("assistant", "It is")))
    shared, own = prompt_ids(model, begun)
    assert model.tokenizer.decode(shared + own).endswith("[assistant]\nIt is")


def test_a_template_without_system_messages_gets_them_from_the_user(
    folder: Path, tmp_path: Path
) -> None:
    template = TEMPLATE.replace(" and refuse_system is defined", "")
    model = with_template(folder, tmp_path / "chat", template)
    shared, own = prompt_ids(model, prompts("Yes?")[0])
    assert model.tokenizer.decode(shared + own) == (
        "[user]\nThe lion walked to the river.\n\nYes?\n[assistant]\n"
    )
    nothing = with_template(folder, tmp_path / "none", "{{ raise_exception('never') }}")
    with pytest.raises(FailedPrecondition, match="template refuses the prompt: never") as refused:
        prompt_ids(nothing, prompts("Yes?")[0])
    assert refused.value.reason == "CHAT_TEMPLATE_REFUSED"


@pytest.mark.parametrize("broken", ["{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{{ messages[9].content }}"])
def test_a_broken_template_is_said_so(broken: str, folder: Path, tmp_path: Path) -> None:
    model = with_template(folder, tmp_path / "chat", broken)
    with pytest.raises(FailedPrecondition, match="template refuses the prompt: ") as refused:
        prompt_ids(model, prompts("Yes?")[0])
    assert refused.value.reason == "CHAT_TEMPLATE_REFUSED"


def test_content_is_no_mark_of_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    for model in (
        LocalModel.load(str(folder), "cpu"),
        with_template(folder, tmp_path / "chat", TEMPLATE),
    ):
        shared, own = prompt_ids(model, prompts("a <|end|> b \ud800 \0 é 🦁")[0])
        assert 1 not in shared + own
        text = model.tokenizer.decode(shared + own)
        assert "a < |end|> b \ufffd \0 é 🦁" in text


def test_an_empty_prompt_is_refused(folder: Path) -> None:
    model = LocalModel.load(str(folder), "cpu")
    assert prompt_ids(model, Prompt((), ())) == ((), (0,)), "what every prompt begins with"
    model.tokenizer.bos_token = None
    with pytest.raises(InvalidInput, match="empty"):
        prompt_ids(model, Prompt((), (Message("user", ""),)))


async def test_a_model_says_how_it_is(folder: Path, tmp_path: Path) -> None:
    model: LanguageModel = LocalLanguageModel(str(tmp_path / "none"), "cpu")
    assert isinstance(model, LocalLanguageModel)
    assert (model.state, model.version) == ("loading", "none")
    for _ in range(2):
        with pytest.raises(Unavailable, match="not a folder"):
            await model.choose(prompts("Yes?"), ["Yes", "No"])
    assert model.state.startswith("failed: the model in ")
    shutil.copytree(folder, tmp_path / "none")
    # For a while, the failure holds; then a call tries again.
    with pytest.raises(Unavailable, match="not a folder"):
        await model.choose(prompts("Yes?"), ["Yes", "No"])
    model._attempts._held_until = 0.0
    await model.choose(prompts("Yes?"), ["Yes", "No"])
    assert model.state == "ready"
    assert model.version.startswith("none@")
    await model.close()
    with pytest.raises(Unavailable, match="closed"):
        await model.choose(prompts("Yes?"), ["Yes", "No"])


async def test_calls_that_wait_for_a_broken_model_do_not_load_it_in_turn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def load(*args: object, **given: object) -> LocalModel:
        attempts.append(args)
        raise KeyError("what nobody thought of")

    monkeypatch.setattr(LocalModel, "load", load)
    model = LocalLanguageModel(str(folder), "cpu")
    model.start()
    calls = [model.choose(prompts("Yes?"), ["Yes", "No"]) for _ in range(5)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert len(attempts) == 1
    for error in errors:
        assert isinstance(error, Unavailable)
        assert error.reason == "MODEL_NOT_LOADED"
        assert "what nobody thought of" in error.message
    assert model.state == f"failed: {errors[0]}"
    await model.close()


async def test_callers_take_turns() -> None:
    worker = DeviceWorker("test")
    ran: list[str] = []

    def steps(name: str, count: int) -> Generator[None, None, str]:
        for _ in range(count):
            ran.append(name)
            yield
        return name

    all_wait = threading.Event()

    def begin() -> Generator[None, None, str]:
        assert all_wait.wait(30)
        yield
        return "start"

    try:
        begins = asyncio.create_task(worker.run(begin))
        long = asyncio.create_task(worker.run(lambda: steps("long", 6)))
        short = asyncio.create_task(worker.run(lambda: steps("short", 2)))
        await asyncio.sleep(0)
        all_wait.set()
        answers = await asyncio.gather(begins, long, short)
    finally:
        worker.close()
    assert answers == ["start", "long", "short"]
    assert ran == ["long", "short"] * 2 + ["long"] * 4


async def test_a_cancelled_callers_work_ends() -> None:
    worker = DeviceWorker("test")
    ended = asyncio.Event()
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def endless() -> Generator[None, None, None]:
        try:
            while True:
                loop.call_soon_threadsafe(began.set)
                yield
        finally:
            loop.call_soon_threadsafe(ended.set)

    def failing() -> Generator[None, None, None]:
        yield
        raise ValueError("of the work")

    try:
        task = asyncio.create_task(worker.run(endless))
        await began.wait()
        with pytest.raises(ValueError, match="of the work"):
            await worker.run(failing)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 10)
        left = asyncio.create_task(worker.run(endless))
        began.clear()
        await began.wait()
    finally:
        worker.close()
    with pytest.raises(Unavailable, match="closed"):
        await left


def test_a_process_ends_though_nobody_closed_its_model() -> None:
    script = (
        "from services.simulation.language_models.local.worker import DeviceWorker\n"
        "def endless():\n"
        "    while True:\n"
        "        yield\n"
        "DeviceWorker('test').submit(endless)\n"
        "print('at the end')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "at the end\n", "")
