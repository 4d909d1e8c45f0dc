"""Search over explanations, through the stub of a real record service."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import neuropil
from neuropil.names import component_id
from neuropil.records import v1
from services.records.storage.file_store import FileStore
from services.records.storage.folders import Folder
from shared.settings import Dataset, Deployment, Search
from tests.conftest import REPOSITORY
from tests.integration.records_running import serving
from tests.integration.search_running import (
    MLP,
    complete,
    deployment,
    eventually,
    explain,
    put,
    refused,
    request,
    texts_of,
    until_indexed,
    written,
)
from tests.load.processes import server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture
async def stub(root: Path) -> AsyncIterator[Any]:
    async with serving(deployment(root)) as opened:
        await complete(opened, "cats")
        yield opened


async def test_hits_have_component_score_and_dataset_best_first(stub: Any, root: Path) -> None:
    answer = await stub.SearchExplanations(request("cat"))
    assert answer.hits[0].explanation.text == "cats"
    assert texts_of(answer) == {"cats", "cats again", "words about cats and dogs"}
    relevances = [hit.relevance for hit in answer.hits]
    assert relevances == sorted(relevances, reverse=True)
    assert relevances[-1] > 0
    assert answer.num_matches == 3
    by_text = {hit.explanation.text: hit for hit in answer.hits}
    first = by_text["cats"]
    assert first.component == component_id(MLP, 3, 7)
    assert first.explanation.score == -0.5
    assert first.explanation.dataset == str(root / "expl")
    again = by_text["cats again"]
    assert again.explanation.dataset == str(root / "cached" / "a")
    assert again.explanation.dataset_name == "a"
    assert answer.index == v1.SearchIndex(num_explanations=5, num_indexed=5, complete=True)


async def test_pages_hold_every_hit_once_in_a_stable_order(root: Path) -> None:
    for index in range(130):
        explain(root / "expl", 5, index, ("the same zebra", 0.1), (f"zebra number {index}", 0.2))
    async with serving(deployment(root)) as stub:
        # Relevances depend on all that is indexed.
        await complete(stub, "cats", dataset="other")
        whole = await complete(stub, "zebra", page_size=1000)
        assert len(whole.hits) == whole.num_matches == 260
        assert not whole.next_page_token
        assert len((await stub.SearchExplanations(request("zebra"))).hits) == 50
        paged: list[Any] = []
        token = ""
        while True:
            page = await stub.SearchExplanations(request("zebra", page_size=7, page_token=token))
            paged += page.hits
            token = page.next_page_token
            if not token:
                break
            assert len(page.hits) == 7
        assert paged == list(whole.hits)
        tied = [hit.component.component_index for hit in paged if "same" in hit.explanation.text]
        assert tied == list(range(130))
        token = (await stub.SearchExplanations(request("zebra", page_size=1))).next_page_token
        for other in (
            {"query": "zebras"},
            {"query": "zebra", "layer_indices": [5]},
            {"query": "zebra", "dataset": "other"},
            {"query": "zebra", "page_token": token[:-2] + "AA"},
        ):
            error = await refused(stub, **({"page_token": token} | other))
            assert (error.code, error.field) == ("INVALID_ARGUMENT", "page_token")


async def test_files_that_come_change_and_go_are_followed(stub: Any, root: Path) -> None:
    path = explain(root / "expl", 8, 1, ("a giraffe", 0.5))
    explain(root / "cached" / "b", 8, 2, ("another giraffe", 0.5))
    await eventually(stub, "giraffe", {"a giraffe", "another giraffe"})
    explain(root / "expl", 8, 1, ("a tall giraffe", 0.5))
    await eventually(stub, "giraffe", {"a tall giraffe", "another giraffe"})
    path.unlink()
    await eventually(stub, "giraffe", {"another giraffe"})
    (root / "cached" / "b" / "8" / "2.jsonl").unlink()
    await eventually(stub, "giraffe", set())


async def test_a_dataset_whose_folder_is_deleted_is_empty(stub: Any, root: Path) -> None:
    shutil.rmtree(root / "expl")
    await eventually(stub, "cats", {"cats again"})
    answer = await complete(stub, "cats")
    assert answer.index.num_explanations == 1
    shutil.rmtree(root / "cached")
    await eventually(stub, "cats", set())
    explain(root / "expl", 0, 0, ("cats are back", 0.5))
    await eventually(stub, "cats", {"cats are back"})


async def test_pages_go_on_where_they_were_while_explanations_come(root: Path) -> None:
    for index in range(60):
        explain(root / "expl", 5, index, ("the same zebra", 0.1))
    async with serving(deployment(root)) as stub:
        await complete(stub, "cats", dataset="other")
        await complete(stub, "zebra")
        found: list[int] = []
        token = ""
        while True:
            page = await stub.SearchExplanations(request("zebra", page_size=7, page_token=token))
            found += [hit.component.component_index for hit in page.hits]
            token = page.next_page_token
            if not token:
                break
            # Each one changes the relevance of all, and comes in a folder before all others.
            name = f"news {len(found)}"
            explain(root / "expl", 5, 1000 + len(found), (f"no {name} of horses", 0.5))
            await eventually(stub, name, {f"no {name} of horses"}, only=name)
        assert found == list(range(60))


async def test_what_is_written_elsewhere_holds_no_search_up(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()
    async with serving(deployment(root, rescan_seconds=3600)) as stub:
        await complete(stub, "cats", dataset="other")
        await complete(stub, "cats")
        path = root / "expl" / "4" / "4.jsonl"
        await put(stub, root / "expl", "an okapi")
        assert texts_of(await stub.SearchExplanations(request("okapi"))) == {"an okapi"}
        # From now on the folder's store hangs.
        read = FileStore.read

        def hanging(self: FileStore, folder: Folder, relative: str, **limits: int) -> bytes | None:
            if folder.path == str(root / "expl"):
                opened.wait(60)
            return read(self, folder, relative)

        monkeypatch.setattr(FileStore, "read", hanging)
        try:
            await put(stub, root / "expl", "a second okapi")
            elsewhere = await stub.SearchExplanations(request("cats", dataset="other"), timeout=4)
            assert elsewhere.index.complete
            # Its own search waits for a bounded time, and says that something is missing.
            own = await stub.SearchExplanations(request("okapi"), timeout=30)
            assert texts_of(own) == {"an okapi"}
            assert not own.index.complete
        finally:
            opened.set()
        own = await complete(stub, "okapi")
        assert texts_of(own) == {"an okapi", "a second okapi"}
        assert path.is_file()


async def test_what_is_written_is_read_also_if_nobody_searches(root: Path) -> None:
    async with serving(deployment(root, rescan_seconds=3600)) as stub:
        await complete(stub, "cats", dataset="other")
        await complete(stub, "cats")
        # Where nothing is searched, nothing is to be remembered.
        await put(stub, root / "open" / "mine", "an okapi that is not searched")
        for number in range(20):
            await put(stub, root / "expl", f"okapi {number}")
        await until_indexed(26)


async def test_a_corrupt_file_is_counted_and_left_out(stub: Any, root: Path) -> None:
    path = explain(root / "expl", 8, 1, ("a giraffe", 0.5))
    await eventually(stub, "giraffe", {"a giraffe"})
    path.write_bytes(path.read_bytes()[:-20])
    await eventually(stub, "giraffe", set())
    answer = await complete(stub, "cats")
    assert answer.index.num_unreadable_files == 1
    assert len(answer.hits) == 3


async def test_what_is_put_is_found_at_once(root: Path) -> None:
    async with serving(deployment(root, rescan_seconds=3600)) as stub:
        await complete(stub, "cats")
        for folder in ("expl", "cached/a", "cached/new"):
            await put(stub, root / folder, f"an okapi in {folder}")
            found = await stub.SearchExplanations(request("okapi"))
            assert f"an okapi in {folder}" in texts_of(found)
        assert len(found.hits) == 3
        assert {hit.explanation.score for hit in found.hits} == {0.5}


async def test_a_folder_is_one_folder_however_it_is_written(root: Path) -> None:
    configured = deployment(root, rescan_seconds=0.1)
    (root / "x").mkdir()
    first = configured.datasets[0].model_copy(
        update={"cached_explanations_path": f"{root}/x/../cached/"}
    )
    configured = configured.model_copy(update={"datasets": (first,)})
    async with serving(configured) as stub:
        await complete(stub, "cats")
        await put(stub, root / "cached" / "new", "an okapi")
        for _ in range(2):
            found = await complete(stub, "okapi")
            assert [hit.explanation.text for hit in found.hits] == ["an okapi"]
            # A scan comes in between.
            await asyncio.sleep(0.5)


async def test_words_of_the_demo_are_found(tmp_path: Path) -> None:
    demo = REPOSITORY / "data" / "demo"
    configured = Deployment(
        datasets=(
            Dataset(
                short_name="demo",
                derived_scalar_type=MLP,
                user_visible_name="demo",
                neuron_dataset_path=str(demo / "records" / "mlp"),
                explanation_dataset_paths=(str(demo / "explanations"),),
            ),
        ),
        search=Search(semantic=False),
    )
    async with serving(configured) as stub:
        answer = await complete(stub, "def keyword")
        assert answer.index.num_explanations == 31
        assert "def" in answer.hits[0].explanation.text


def test_serving_needs_no_torch() -> None:
    code = (
        "import sys, services.records.app, services.records.search.search;"
        "sys.exit('torch' in sys.modules or 'sentence_transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_the_typed_client_searches(tmp_path: Path) -> None:
    explain(tmp_path / "expl", 0, 0, ("cats and dogs", 0.5), ("a cat", None))
    explain(tmp_path / "expl", 3, 7, ("cats", -0.5))
    dataset = {
        "short_name": "demo",
        "derived_scalar_type": MLP,
        "user_visible_name": "Demo",
        "neuron_dataset_path": "records",
        "explanation_dataset_paths": ["expl"],
    }
    config = tmp_path / "deployment.yaml"
    config.write_text(yaml.safe_dump({"datasets": [dataset], "search": {"semantic": False}}))
    arguments = ("--config", str(config), "--port", "0", "--metrics-port", "0")
    with (
        server("services.records", *arguments) as (address, _),
        neuropil.connect(records=address, timeout=20) as client,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", neuropil.PartialAnswerWarning)
        deadline = time.monotonic() + 60
        while len(hits := client.records.search("cat", "demo", MLP)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first = hits[0]
        assert isinstance(first, neuropil.SearchHit)
        assert first.explanation.text == "a cat"
        assert first.explanation.score is None
        assert first.relevance >= hits[1].relevance >= hits[2].relevance > 0
        assert client.records.search("cat", "demo", MLP, limit=1) == hits[:1]
        (scored,) = client.records.search("cat", "demo", MLP, min_score=0.5)
        assert scored.explanation.score == 0.5
        (deep,) = client.records.search("cat", "demo", MLP, layer_indices=[3])
        assert (deep.layer_index, deep.component_index) == (3, 7)
        with pytest.raises(neuropil.NeuropilError) as caught:
            client.records.search("cat", "demo", MLP, semantic=True)
        assert caught.value.reason == "SEMANTIC_SEARCH_OFF"
