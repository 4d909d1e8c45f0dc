"""Search by meaning, with the sentence model in its own process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

import neuropil
from services.records.datasets import DatasetRegistry
from services.records.search.embedder import Embedder, is_installed
from services.records.search.search import ExplanationSearch, Hits, Query
from services.records.storage.blobs import Blobs
from shared.errors import Unavailable
from shared.settings import Dataset, Search
from tests.conftest import REPOSITORY, leave_out
from tests.load.processes import server

DEMO = REPOSITORY / "data" / "demo"
MLP = "mlp_post_act"

PARAPHRASES = {
    "the interactive interpreter's input marker": (1, 116),
    "royalty and the deity in scripture": (2, 99),
    "URLs": (2, 58),
    "words that show ownership": (3, 205),
    "dwellings and towns": (3, 175),
    "where a new routine is declared in a script": (2, 67),
    "folders on disk": (1, 42),
    "auxiliary verbs expressing obligation or possibility": (2, 241),
    "boolean and null literals": (3, 98),
    "cross-references that send the reader elsewhere": (3, 95),
    "dashes joining two words": (3, 117),
    "old-fashioned language": (0, 244),
    "who wrote a page of the manual": (1, 186),
    "is, was, were": (3, 122),
}
"""What a person may ask for, and the component whose explanation means it."""


# One model for all: it takes seconds to load, on a busy machine many.
module_loop = pytest.mark.asyncio(loop_scope="module")

# It says that it is there, and ends when it is asked.
DYING = (
    "import sys; sys.stdout.buffer.write(bytes(4)); sys.stdout.flush(); sys.stdin.buffer.read(4)"
)


@pytest.fixture(autouse=True, scope="module")
def _needs_the_model() -> None:
    if not is_installed():
        leave_out("NO SENTENCE MODEL: install neuropil-services[search]")


def search_over(*folders: Path, embedder: Embedder | None = None) -> ExplanationSearch:
    dataset = Dataset(
        short_name="demo",
        derived_scalar_type=MLP,
        user_visible_name="Demo",
        neuron_dataset_path=str(DEMO / "records" / "mlp"),
        explanation_dataset_paths=tuple(map(str, folders)),
    )
    return ExplanationSearch(
        DatasetRegistry([dataset]),
        Blobs(),
        Search(rescan_seconds=0.2),
        max_reply_bytes=2**24,
        embedder=embedder,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def search(_needs_the_model: None) -> AsyncIterator[ExplanationSearch]:
    made = search_over(DEMO / "explanations")
    async with made.running():
        yield made


async def complete(search: ExplanationSearch, text: str, **more: int) -> Hits:
    async with asyncio.timeout(120):
        while True:
            hits = await search.search("demo", MLP, Query(text, semantic=True, **more))
            if hits.complete:
                return hits
            await asyncio.sleep(0.1)


@module_loop
async def test_paraphrases_are_found_far_better_than_by_chance(search: ExplanationSearch) -> None:
    found = 0
    for text, place in PARAPHRASES.items():
        hits = await complete(search, text, page_size=3)
        assert hits.num_matches == hits.num_indexed == 31
        relevances = [hit.relevance for hit in hits.hits]
        assert relevances == sorted(relevances, reverse=True)
        assert all(-1 <= relevance <= 1.001 for relevance in relevances)
        places = {(hit.component.layer_index, hit.component.component_index) for hit in hits.hits}
        found += place in places
    # By chance 3 of 31 would be right: 1.4 of these 14.
    assert found / len(PARAPHRASES) >= 0.7, found


@module_loop
async def test_signs_and_other_scripts_have_a_meaning_too(search: ExplanationSearch) -> None:
    for text in ("://", "🙂", "بيت", "x" * 4096, "\0", "-"):
        assert len((await complete(search, text)).hits) == 31
    same = [await complete(search, "cities") for _ in range(2)]
    assert same[0].hits == same[1].hits


@module_loop
async def test_pages_by_meaning_hold_every_hit_once(search: ExplanationSearch) -> None:
    whole = await complete(search, "verbs")
    paged = []
    token = ""
    while True:
        query = Query("verbs", semantic=True, page_size=4, page_token=token)
        page = await search.search("demo", MLP, query)
        paged += page.hits
        token = page.next_page_token
        if not token:
            break
    assert paged == whole.hits


@module_loop
async def test_vectors_are_unit_vectors_and_do_not_depend_on_the_batch(
    search: ExplanationSearch,
) -> None:
    embedder = search.embedder
    assert embedder is not None
    together = await embedder.embed(["a", "a much longer text " * 20], for_query=False)
    alone = await embedder.embed(["a"], for_query=True)
    np.testing.assert_allclose(np.linalg.norm(together.astype(float), axis=1), 1, atol=2e-3)
    np.testing.assert_allclose(together[0], alone[0], atol=2e-3)


@module_loop
async def test_a_killed_model_is_started_again(search: ExplanationSearch) -> None:
    before = await complete(search, "cities")
    assert search.embedder is not None
    killed = search.embedder.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(90):
        while True:
            try:
                after = await search.search("demo", MLP, Query("cities", semantic=True))
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_seconds or 60)
            else:
                break
    assert after.hits == before.hits
    assert search.embedder.pid not in (None, killed)
    assert (await search.search("demo", MLP, Query("cities"))).hits


async def test_a_model_that_dies_while_it_is_asked_is_unavailable_for_a_while() -> None:
    embedder = Embedder([sys.executable, "-c", DYING])
    made = search_over(DEMO / "explanations", embedder=embedder)
    async with made.running():
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await made.search("demo", MLP, Query("cities", semantic=True))
            assert caught.value.reason == "EMBEDDER_RESTARTING"
            assert caught.value.retry_after_seconds
        assert (await made.search("demo", MLP, Query("cities"))).num_explanations <= 31


async def test_a_caller_waits_no_longer_than_its_deadline_for_the_model() -> None:
    embedder = Embedder([sys.executable, "-c", "import time; time.sleep(600)"])
    made = search_over(DEMO / "explanations", embedder=embedder)
    async with made.running():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await made.search("demo", MLP, Query("cities", semantic=True))


def test_the_model_ends_with_the_service_even_if_that_is_killed() -> None:
    config = DEMO / "deployment.yaml"
    arguments = ("--config", str(config), "--port", "0", "--metrics-port", "0")
    with server("services.records", *arguments) as (address, pid):
        with (
            neuropil.connect(records=address, timeout=120) as client,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", neuropil.PartialAnswerWarning)
            client.records.search("cities", "demo", MLP, semantic=True)
        (model,) = [
            int(child)
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if "embedding_process" in Path(f"/proc/{child}/cmdline").read_text()
        ]
        assert os.getpriority(os.PRIO_PROCESS, model) >= 10
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while _runs(model):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    # Where nobody waits for orphans they stay as zombies.
    return state != "Z"
