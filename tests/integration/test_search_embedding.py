"""The process of the sentence model when it fails, and what becomes of the texts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from prometheus_client import REGISTRY

from services.records.search.columns import Selection
from services.records.search.documents import FileKey, Text
from services.records.search.embedder import Embedder, EmbeddingFailed
from services.records.search.index import ExplanationIndex
from services.records.search.pending import MAX_ATTEMPTS, PendingVectors
from shared.errors import Unavailable
from tests.conftest import REPOSITORY

MODEL = """
import json, os, struct, sys, time
sys.path.insert(0, {root!r})
source, answers = sys.stdin.buffer, sys.stdout.buffer
def send(content):
    answers.write(struct.pack("<I", len(content)) + content)
    answers.flush()
send(b"")
while head := source.read(4):
    texts = json.loads(source.read(struct.unpack("<I", head)[0]))
    with open({log!r}, "a") as log:
        log.write(json.dumps(texts) + chr(10))
    if any("poison" in text for text in texts) and not os.path.exists({cured!r}):
        sys.stderr.write("noise " * 100_000 + "the model choked")
        sys.exit(3)
    if any("nonsense" in text for text in texts):
        send(b"\\xff" * 768 * len(texts))
    elif any("short" in text for text in texts):
        send(b"abc")
    else:
        send(struct.pack("<384e", 1, *[0] * 383) * len(texts))
"""


class Model:
    """A process that speaks as the sentence model's does, and fails at some texts."""

    def __init__(self, folder: Path) -> None:
        self._log, self._cured = folder / "asked", folder / "cured"
        program = MODEL.format(root=str(REPOSITORY), log=str(self._log), cured=str(self._cured))
        self.embedder = Embedder([sys.executable, "-c", program])

    def cure(self) -> None:
        self._cured.touch()

    def asked(self, text: str) -> int:
        """How often it was asked for a text."""
        return self._log.read_text().count(text) if self._log.exists() else 0


@pytest.fixture
async def model(tmp_path: Path) -> AsyncIterator[Model]:
    made = Model(tmp_path)
    yield made
    await made.embedder.close()


@asynccontextmanager
async def embedding(
    index: ExplanationIndex, embedder: Embedder, **more: float
) -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        task = asyncio.create_task(PendingVectors(index, embedder, executor, **more).run())
        try:
            yield executor
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def filled(*texts: str) -> ExplanationIndex:
    index = ExplanationIndex(None, "a model")
    folder = index.folder("/explanations")
    for number, text in enumerate(texts):
        index.replace(FileKey(folder, 0, number), "v1", [Text(text, 0.5)])
    index.commit()
    return index


async def until(true) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def environment_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def value(metric: str) -> float:
    return REGISTRY.get_sample_value(f"neuropil_records_search_{metric}") or 0.0


async def test_a_text_that_the_model_fails_at_is_found_by_words_only(model: Model) -> None:
    index = filled("cats", "poison ivy", "dogs", "hens")
    with structlog.testing.capture_logs() as logs:
        async with embedding(index, model.embedder) as executor:
            await until(lambda: index.num_set_aside() == 1 and index.count() == (4, 3))
            tries = model.asked("poison ivy")
            # Once with the others, then on its own; not for ever.
            assert tries == 1 + MAX_ATTEMPTS
            await asyncio.sleep(1)
            assert model.asked("poison ivy") == tries
            assert value("not_embedded_explanations") == 1
            selection = Selection((1,))
            assert len(index.search_text("poison", selection, None, 9)[0]) == 1
            # One that changes is another text.
            file = FileKey(1, 0, 1)
            executor.submit(index.replace, file, "v2", [Text("ivy", 0.5)]).result()
            executor.submit(index.commit).result()
            await until(lambda: index.count() == (4, 4))
            await until(lambda: value("not_embedded_explanations") == 0)
    (told,) = [entry for entry in logs if entry["event"] == "explanation_not_embedded"]
    assert (told["layer_index"], told["component_index"]) == (0, 1)
    failures = [entry for entry in logs if entry["event"] == "embedder_failed"]
    assert len(failures) == tries
    for entry in failures:
        assert entry["stderr"].endswith("the model choked")
        assert len(entry["stderr"]) <= 4096
    index.close()


async def test_a_text_that_was_given_up_is_tried_again_later(model: Model) -> None:
    index = filled("poison ivy")
    async with embedding(index, model.embedder, again_seconds=1.0):
        await until(lambda: index.num_set_aside() == 1)
        model.cure()
        await until(lambda: index.count() == (1, 1))
        assert index.num_set_aside() == 0
    index.close()


@pytest.mark.parametrize("text", ["nonsense", "short"])
async def test_an_answer_that_is_no_vector_is_a_failure(model: Model, text: str) -> None:
    with pytest.raises(EmbeddingFailed) as caught:
        await model.embedder.embed([text], for_query=True)
    assert caught.value.reason == "EMBEDDER_RESTARTING"
    await asyncio.sleep(caught.value.retry_after_seconds or 0)
    assert (await model.embedder.embed(["cats"], for_query=True))[0, 0] == 1


async def test_a_model_that_cannot_start_is_no_fault_of_the_texts() -> None:
    index = filled("cats")
    embedder = Embedder([sys.executable, "-c", "raise SystemExit('no weights here')"])
    with structlog.testing.capture_logs() as logs:
        async with embedding(index, embedder):
            await until(lambda: sum(each["event"] == "embedder_failed" for each in logs) >= 3)
        assert index.num_set_aside() == 0
        assert index.count() == (1, 0)
    assert all("no weights here" in each.get("stderr", "no weights here") for each in logs)
    # Each time later than the last.
    waits = [each["again_after_seconds"] for each in logs if "again_after_seconds" in each]
    assert waits == sorted(set(waits))
    await embedder.close()
    index.close()


async def test_a_kill_in_the_middle_of_a_batch_loses_no_text(model: Model) -> None:
    index = filled(*(f"text {number}" for number in range(200)))
    async with embedding(index, model.embedder):
        for _ in range(2):
            await until(lambda: model.embedder.pid is not None)
            with contextlib.suppress(ProcessLookupError):
                os.kill(model.embedder.pid or 0, signal.SIGKILL)
        await until(lambda: index.count() == (200, 200))
        assert index.num_set_aside() == 0
    index.close()


async def test_the_model_gets_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a secret")
    monkeypatch.setenv("NEUROPIL_CACHE__URL", "redis://:another-secret@cache")
    model = Model(tmp_path)
    try:
        await model.embedder.embed(["cats"], for_query=True)
        environment = environment_of(model.embedder.pid)
    finally:
        await model.embedder.close()
    assert "secret" not in environment
    assert "AZURE" not in environment
    assert "PATH=" in environment
    assert "HF_HUB_OFFLINE=1" in environment


async def test_a_process_that_talks_without_end_is_listened_to() -> None:
    program = (
        "import struct, sys\n"
        "sys.stdout.buffer.write(struct.pack('<I', 0)); sys.stdout.buffer.flush()\n"
        "sys.stdin.buffer.read(4)\n"
        "sys.stderr.write('x' * 5_000_000)\n"
        "sys.stdout.buffer.write(struct.pack('<I384e', 768, 1, *[0] * 383))\n"
        "sys.stdout.buffer.flush()\n"
        "sys.stdin.buffer.read()"
    )
    embedder = Embedder([sys.executable, "-c", program])
    try:
        async with asyncio.timeout(30):
            assert (await embedder.embed(["cats"], for_query=True)).shape == (1, 384)
    finally:
        await embedder.close()


async def test_callers_that_leave_hold_nobody_up(model: Model) -> None:
    for _ in range(5):
        waiting = asyncio.create_task(model.embedder.embed(["cats"], for_query=True))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    began = time.monotonic()
    async with asyncio.timeout(30):
        try:
            await model.embedder.embed(["cats"], for_query=True)
        except Unavailable as error:
            pytest.fail(f"{error} after {time.monotonic() - began}")
