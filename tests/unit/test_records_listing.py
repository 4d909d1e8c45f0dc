"""Layers and components in numeric order, and pages of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder
from services.records.storage.listing import components, layers, page
from shared.errors import InvalidArgument, NotFound


@pytest.fixture
def blobs() -> Iterator[Blobs]:
    store = Blobs(threads=1)
    yield store
    store.close()


async def test_numeric_order_and_what_is_passed_over(blobs: Blobs, tmp_path: Path) -> None:
    for name in ("10", "9", "0", "007", "x", "²", "-1", "1.5", "9" * 30, ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "3").write_text("")
    for name in ("10.json", "9.json", "2.json", "02.json", "a.json", "7.jsonl", ".8.json.x.tmp"):
        (tmp_path / "9" / name).write_text("")
    (tmp_path / "9" / "5.json").mkdir()
    folder = Folder.trusted(str(tmp_path))
    assert await layers(blobs, folder) == [0, 9, 10]
    assert list(await components(blobs, folder, 9, ".json")) == [2, 9, 10]
    assert list(await components(blobs, folder, 9, ".jsonl")) == [7]
    assert list(await components(blobs, folder, 0, ".json")) == []


async def test_missing_folders(blobs: Blobs, tmp_path: Path) -> None:
    assert await layers(blobs, Folder.trusted(str(tmp_path / "nowhere"))) == []
    with pytest.raises(NotFound, match="no layer 4"):
        await components(blobs, Folder.trusted(str(tmp_path)), 4, ".json")
    with pytest.raises(InvalidArgument):
        await components(blobs, Folder.trusted(str(tmp_path)), -1, ".json")


def test_pages_have_everything_once() -> None:
    indices = list(range(0, 50, 2))
    seen: list[int] = []
    token = ""
    while True:
        part = page(indices, 7, token)
        seen += part.indices
        token = part.next_page_token
        if not token:
            break
    assert seen == indices
    assert page(indices, 25, "").next_page_token == ""
    assert page([], 0, "").indices == []
    assert len(page(list(range(2000)), 0, "").indices) == 1000


def test_a_page_goes_on_where_an_index_disappeared() -> None:
    assert page([1, 2, 5], 2, "3").indices == [5]
    assert page([1, 2, 5], 2, "9").indices == []


@pytest.mark.parametrize(("size", "token"), [(-1, ""), (10_001, ""), (1, "x"), (1, "-1"), (1, "²")])
def test_bad_pages_are_refused(size: int, token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        page([1], size, token)
    assert caught.value.field in ("page_size", "page_token")
