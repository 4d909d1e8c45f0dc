"""Reading files: real ones, missing ones, odd ones, and links."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder
from shared.errors import DataLoss, InvalidArgument, ResourceExhausted


@pytest.fixture
def blobs() -> Iterator[Blobs]:
    store = Blobs(max_bytes=100, threads=2)
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    root = tmp_path / "set"
    (root / "0").mkdir(parents=True)
    (root / "0" / "1.json").write_bytes(b"content")
    return Folder(str(root), "as-configured", str(root))


async def test_a_file(blobs: Blobs, folder: Folder) -> None:
    assert await blobs.read(folder, "0/1.json") == b"content"


@pytest.mark.parametrize("relative", ["0/2.json", "1/1.json", "0/1.json/2.json"])
async def test_missing_files_are_none(blobs: Blobs, folder: Folder, relative: str) -> None:
    assert await blobs.read(folder, relative) is None


async def test_a_missing_folder(blobs: Blobs, tmp_path: Path) -> None:
    nowhere = Folder.trusted(str(tmp_path / "nowhere"))
    assert await blobs.read(nowhere, "0/1.json") is None
    assert await blobs.folders(nowhere) == []
    assert await blobs.files(nowhere, "0") is None


async def test_what_is_no_file(blobs: Blobs, folder: Folder) -> None:
    (Path(folder.path) / "0" / "2.json").mkdir()
    os.mkfifo(Path(folder.path) / "0" / "3.json")
    for name in ("0/2.json", "0/3.json"):
        with pytest.raises(DataLoss) as caught:
            await asyncio.wait_for(blobs.read(folder, name), 10)
        assert caught.value.metadata == {"file": f"as-configured/{name}"}


async def test_a_file_that_is_too_large(blobs: Blobs, folder: Folder) -> None:
    (Path(folder.path) / "0" / "2.json").write_bytes(b"x" * 100)
    (Path(folder.path) / "0" / "3.json").write_bytes(b"x" * 101)
    content = await blobs.read(folder, "0/2.json")
    assert content is not None
    assert len(content) == 100
    with pytest.raises(ResourceExhausted) as caught:
        await blobs.read(folder, "0/3.json")
    assert caught.value.metadata == {
        "file": "as-configured/0/3.json",
        "bytes": "101",
        "limit": "100",
    }


async def test_links_out_of_the_root_are_refused(
    blobs: Blobs, folder: Folder, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "1.json").write_bytes(b"secret")
    (tmp_path / "settle").mkdir()
    root = Path(folder.path)
    (root / "1").symlink_to(tmp_path / "secret")
    (root / "0" / "2.json").symlink_to("../../secret/1.json")
    (root / "0" / "3.json").symlink_to(tmp_path / "nowhere")
    for name in ("1/1.json", "0/2.json", "0/3.json", "../secret/1.json"):
        with pytest.raises(InvalidArgument) as caught:
            await blobs.read(folder, name)
        assert caught.value.reason == "PATH_NOT_ALLOWED"
        assert str(tmp_path) not in caught.value.message
    with pytest.raises(InvalidArgument):
        await blobs.files(folder, "1")


async def test_links_within_the_root_and_of_the_root_are_followed(
    blobs: Blobs, folder: Folder, tmp_path: Path
) -> None:
    (Path(folder.path) / "1").symlink_to("0")
    assert await blobs.read(folder, "1/1.json") == b"content"
    (tmp_path / "link").symlink_to(folder.path)
    assert await blobs.read(Folder.trusted(str(tmp_path / "link")), "0/1.json") == b"content"


async def test_a_circle_of_links(blobs: Blobs, folder: Folder) -> None:
    (Path(folder.path) / "0" / "5.json").symlink_to("5.json")
    with pytest.raises(DataLoss, match=r"as-configured/0/5\.json"):
        await blobs.read(folder, "0/5.json")


async def test_listing(blobs: Blobs, folder: Folder) -> None:
    root = Path(folder.path)
    (root / "1").mkdir()
    (root / "readme").write_text("")
    assert sorted(await blobs.folders(folder)) == ["0", "1"]
    assert await blobs.files(folder, "0") == ["1.json"]
    assert await blobs.files(folder, "1") == []
    assert await blobs.files(folder, "readme") is None


async def test_many_reads_at_once(blobs: Blobs, folder: Folder) -> None:
    contents = await asyncio.gather(*(blobs.read(folder, "0/1.json") for _ in range(200)))
    assert set(contents) == {b"content"}
