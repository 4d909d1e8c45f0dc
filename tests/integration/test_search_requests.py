"""What a search may ask for, and what is refused; through the stubs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from neuropil.records import v1
from tests.integration.records_running import serving
from tests.integration.search_running import (
    complete,
    deployment,
    refused,
    request,
    texts_of,
    written,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture
async def stub(root: Path) -> AsyncIterator[Any]:
    async with serving(deployment(root)) as opened:
        await complete(opened, "cats")
        yield opened


async def test_a_search_stays_in_its_dataset(stub: Any) -> None:
    other = await complete(stub, "cats", dataset="other")
    assert texts_of(other) == {"cats of another dataset"}
    assert other.index.num_explanations == 1
    assert not (await complete(stub, "cats", dataset="empty")).hits


async def test_filters(stub: Any) -> None:
    by_layer = await stub.SearchExplanations(request("cats", layer_indices=[1, 3]))
    assert texts_of(by_layer) == {"cats", "cats again"}
    by_score = await stub.SearchExplanations(request("cats nothing", min_score=0.5))
    assert texts_of(by_score) == {"cats again", "words about cats and dogs"}
    assert not (await stub.SearchExplanations(request("cats", layer_indices=[9]))).hits
    negative = await stub.SearchExplanations(request("cats", min_score=-0.5))
    assert len(negative.hits) == 3


@pytest.mark.parametrize(
    "query",
    [
        '"cats',
        "cats)",
        "(cats",
        "cats:",
        "stems:cats +[",
        "cats AND (",
        "-cats",
        "cats~^*",
        "\0cats",
    ],
)
async def test_nothing_in_a_query_is_syntax(stub: Any, query: str) -> None:
    assert "cats" in texts_of(await stub.SearchExplanations(request(query)))


async def test_a_field_name_in_a_query_selects_nothing(stub: Any) -> None:
    assert not (await stub.SearchExplanations(request("folder:1 OR id:[0 TO 9]"))).hits


@pytest.mark.parametrize("query", ["قطط", "東京", "x" * 4096, "a " * 2048, "é" * 2000, "cat\u200b"])
async def test_unusual_queries_are_answered(stub: Any, query: str) -> None:
    await stub.SearchExplanations(request(query))


@pytest.mark.parametrize(
    ("wrong", "code", "field"),
    [
        ({"query": "   "}, "INVALID_ARGUMENT", "query"),
        ({"query": "🙂 :: !"}, "INVALID_ARGUMENT", "query"),
        ({"query": ""}, "INVALID_ARGUMENT", "query"),
        ({"query": "x" * 4097}, "INVALID_ARGUMENT", "query"),
        ({"query": "x", "page_size": -1}, "INVALID_ARGUMENT", "page_size"),
        ({"query": "x", "page_size": 1001}, "INVALID_ARGUMENT", "page_size"),
        ({"query": "x", "page_token": "garbage"}, "INVALID_ARGUMENT", "page_token"),
        ({"query": "x", "page_token": "東"}, "INVALID_ARGUMENT", "page_token"),
        ({"query": "x", "layer_indices": [-1]}, "INVALID_ARGUMENT", "layer_indices[0]"),
        ({"query": "x", "min_score": float("nan")}, "INVALID_ARGUMENT", "min_score"),
        ({"query": "x", "min_score": float("inf")}, "INVALID_ARGUMENT", "min_score"),
        ({"query": "x", "mode": 9}, "INVALID_ARGUMENT", "mode"),
        ({"query": "x", "dataset": "nobody"}, "NOT_FOUND", "dataset.dataset"),
        ({"query": "x", "dataset": "/etc/x"}, "INVALID_ARGUMENT", "dataset.dataset"),
        (
            {"query": "x", "derived_scalar_type": "attn_write_norm"},
            "INVALID_ARGUMENT",
            "dataset.dataset",
        ),
    ],
)
async def test_wrong_requests_name_the_field(
    stub: Any, wrong: dict[str, Any], code: str, field: str
) -> None:
    error = await refused(stub, **wrong)
    assert (error.code, error.field) == (code, field)


async def test_search_by_meaning_that_is_off_says_so(stub: Any) -> None:
    error = await refused(stub, query="cats", mode=v1.SEARCH_MODE_SEMANTIC)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "SEMANTIC_SEARCH_OFF")


async def test_search_by_meaning_that_is_not_installed_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.records.search.search.is_installed", lambda: False)
    async with serving(deployment(root, semantic=True)) as stub:
        error = await refused(stub, query="cats", mode=v1.SEARCH_MODE_SEMANTIC)
        assert (error.code, error.reason) == (
            "FAILED_PRECONDITION",
            "SEMANTIC_SEARCH_NOT_INSTALLED",
        )
        assert "neuropil-services[search]" in error.message
        assert (await complete(stub, "cats")).hits
