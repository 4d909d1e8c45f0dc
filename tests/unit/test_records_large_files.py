"""Large files: one at a time in memory, and nobody with a small one waits for them."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.records.storage import blobs as blobs_module
from services.records.storage import local
from services.records.storage.blobs import LARGE_FILE_BYTES, Blobs
from services.records.storage.folders import Folder
from shared.errors import DataLoss, ResourceExhausted
from tests.emulators.failing import CONTENT, Store

SECONDS = 30
"""Long enough for anything that does not wait for a large file."""

LARGE = b"x" * (LARGE_FILE_BYTES + 1)
FILES = 8


class Held:
    """Counts the large contents that there are, from their reading until something was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = self.made = 0
        self.go_on = threading.Event()
        self.making = threading.Event()
        self._lock = threading.Lock()
        read = local.read

        def counted(folder: Folder, relative: str, max_bytes: int) -> bytes | None:
            content = read(folder, relative, max_bytes)
            if content is not None and len(content) == len(LARGE):
                with self._lock:
                    self.now += 1
                    self.most = max(self.most, self.now)
            return content

        monkeypatch.setattr(local, "read", counted)

    def make(self, content: bytes | None) -> bytes:
        assert content == LARGE
        self.making.set()
        assert self.go_on.wait(SECONDS)
        with self._lock:
            self.now -= 1
            self.made += 1
        return b"made"


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


@pytest.fixture
def blobs(held: Held) -> Iterator[Blobs]:
    store = Blobs()
    yield store
    held.go_on.set()
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    for number in range(FILES):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/large").write_bytes(LARGE)
        (tmp_path / f"{number}/small").write_bytes(b"small")
    return Folder.trusted(str(tmp_path))


async def test_large_files_take_turns_and_small_ones_pass(
    blobs: Blobs, folder: Folder, held: Held
) -> None:
    loads = [
        asyncio.create_task(blobs.load(folder, f"{number}/large", held.make))
        for number in range(FILES)
    ]
    await asyncio.to_thread(held.making.wait, SECONDS)
    small = await asyncio.wait_for(blobs.load(folder, "0/small", bytes.upper), SECONDS)
    assert small == b"SMALL"
    assert held.made == 0
    held.go_on.set()
    assert await asyncio.wait_for(asyncio.gather(*loads), SECONDS) == [b"made"] * FILES
    assert held.most == 1


async def test_who_goes_leaves_no_content_behind(blobs: Blobs, folder: Folder, held: Held) -> None:
    for number in range(FILES):
        load = asyncio.create_task(blobs.load(folder, f"{number}/large", held.make))
        await asyncio.to_thread(held.making.wait, SECONDS)
        await asyncio.sleep(0.02)
        load.cancel()
        await asyncio.wait([load])
    held.go_on.set()
    assert await blobs.load(folder, "0/large", held.make) == b"made"
    assert held.most == 1
    assert held.made == 2, "whose caller goes while it waits is not read"


async def test_large_files_are_merged_one_at_a_time(
    blobs: Blobs, folder: Folder, held: Held
) -> None:
    writes = [
        asyncio.create_task(blobs.update(folder, f"{number}/large", held.make))
        for number in range(FILES)
    ]
    await asyncio.to_thread(held.making.wait, SECONDS)
    await asyncio.wait_for(
        blobs.update(folder, "7/small", lambda content: (content or b"").upper()), SECONDS
    )
    assert await asyncio.wait_for(blobs.read(folder, "7/small"), SECONDS) == b"SMALL"
    held.go_on.set()
    await asyncio.wait_for(asyncio.gather(*writes), SECONDS)
    assert held.most == 1
    assert await blobs.read(folder, "3/large") == b"made"


async def test_an_error_that_is_kept_keeps_no_content(blobs: Blobs, folder: Folder) -> None:
    def refuse(content: bytes | None) -> bytes:
        parsed = bytearray(content or b"")
        try:
            raise ValueError(len(parsed))
        except ValueError as error:
            raise DataLoss("corrupt") from error

    kept = []
    tracemalloc.start()
    try:
        for number in range(FILES):
            for call in (blobs.load, blobs.update):
                with pytest.raises(DataLoss) as caught:
                    await call(folder, f"{number}/large", refuse)
                kept.append(caught.value)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept) == 2 * FILES
    assert held < len(LARGE)


async def test_the_limit_is_told_as_it_is(folder: Folder) -> None:
    blobs = Blobs(max_bytes=LARGE_FILE_BYTES + 10)
    try:
        assert await blobs.read(folder, "0/large") == LARGE
        (Path(folder.path) / "0/larger").write_bytes(LARGE + b"x" * 10)
        with pytest.raises(ResourceExhausted) as caught:
            await blobs.read(folder, "0/larger")
        assert caught.value.metadata["limit"] == str(LARGE_FILE_BYTES + 10)
    finally:
        blobs.close()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
    monkeypatch.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")
    made = Store()
    yield made
    made.close()


@pytest.mark.parametrize("path", ["az://fails/box/mlp", "gs://box/mlp"])
@pytest.mark.parametrize("large", [False, True])
async def test_making_takes_none_of_the_store_s_time(
    store: Store, monkeypatch: pytest.MonkeyPatch, path: str, large: bool
) -> None:
    monkeypatch.setattr(blobs_module, "LARGE_FILE_BYTES", len(CONTENT) - large)
    blobs = Blobs(store.settings(timeout_seconds=1.0))

    def make(content: bytes) -> bytes:
        time.sleep(1.5)
        return content

    try:
        assert await blobs.load(Folder.trusted(path), "good", make) == CONTENT
        assert store.seen["good"] == 1 + large
    finally:
        blobs.close()
