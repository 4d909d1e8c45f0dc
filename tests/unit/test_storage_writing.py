"""Storing explanations: what is merged, what is refused, what a crash or a rival leaves."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blobfile
import numpy as np
import pytest

from neuropil.names import component_id
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_tensor
from services.records.components import Component
from services.records.storage import conditional, local
from services.records.storage.blobs import Blobs
from services.records.storage.folders import Folder
from services.records.storage.local import LOCK_FILE
from services.records.storage.writing import ExplanationWriter
from services.records.stored_explanations import stored_explanation
from shared.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from shared.formats.decoding import decode_simulation_results
from shared.formats.simulations import (
    AttentionSimulation,
    ScoredAttentionExplanation,
    ScoredAttentionSimulation,
    ScoredExplanation,
    ScoredSimulation,
)
from shared.settings import Storage
from tests.emulators.azurite import Azurite
from tests.emulators.failing import Store

COMPONENT = Component("mlp_post_act", 3, 5)
FILE = "3/5.jsonl"


def scored(text: str, score: float | None = 0.5) -> ScoredExplanation:
    return ScoredExplanation(text, ScoredSimulation([], score))


def scored_pairs(text: str) -> ScoredAttentionExplanation:
    pairs = [AttentionSimulation(["a", "b"], (1, 0), 1, 0.75)]
    return ScoredAttentionExplanation(text, ScoredAttentionSimulation(pairs, 0.5))


async def nobody(component: Component, folder: Folder) -> None:
    """Wants to know nothing of what was written."""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.trusted(str(tmp_path / "explanations"))


@pytest.fixture
def blobs() -> Iterator[Blobs]:
    made = Blobs(Storage(timeout_seconds=1.0))
    yield made
    made.close()


@pytest.fixture
def writer(blobs: Blobs) -> ExplanationWriter:
    return ExplanationWriter(blobs, nobody)


def leave(folder: Folder, relative: str, content: bytes) -> None:
    path = Path(folder.path, relative)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def texts(content: bytes | None) -> list[tuple[str, float | None]]:
    assert content is not None
    results = decode_simulation_results(content, FILE)
    return [(each.explanation, each.get_preferred_score()) for each in results.scored_explanations]


async def test_explanations_are_merged_by_their_text(
    writer: ExplanationWriter, blobs: Blobs, folder: Folder
) -> None:
    assert not await writer.put(COMPONENT, folder, scored("a", 0.1))
    assert not await writer.put(COMPONENT, folder, scored("b", 0.2))
    assert await writer.put(COMPONENT, folder, scored("a", 0.3))
    assert await writer.put(COMPONENT, folder, scored("a", 0.3)), "the same again replaces it too"
    assert texts(await blobs.read(folder, FILE)) == [("a", 0.3), ("b", 0.2)]


@pytest.mark.parametrize("kinds", [(scored, scored_pairs), (scored_pairs, scored)])
async def test_a_file_holds_explanations_of_one_kind(
    writer: ExplanationWriter, blobs: Blobs, folder: Folder, kinds: tuple[Callable[[str], Any], ...]
) -> None:
    first, second = kinds
    await writer.put(COMPONENT, folder, first("a"))
    before = await blobs.read(folder, FILE)
    with pytest.raises(FailedPrecondition, match="holds explanations of token"):
        await writer.put(COMPONENT, folder, second("b"))
    assert await blobs.read(folder, FILE) == before


async def test_a_corrupt_file_is_left(
    writer: ExplanationWriter, blobs: Blobs, folder: Folder
) -> None:
    leave(folder, FILE, b"{broken")
    with pytest.raises(DataLoss):
        await writer.put(COMPONENT, folder, scored("a"))
    assert await blobs.read(folder, FILE) == b"{broken"


async def test_a_file_never_grows_over_what_can_be_read(folder: Folder) -> None:
    small = Blobs(max_bytes=600)
    writer = ExplanationWriter(small, nobody)
    with pytest.raises(ResourceExhausted) as caught:
        for number in range(10):
            await writer.put(COMPONENT, folder, scored(f"{number} " + "x" * 50))
    assert caught.value.reason == "FILE_TOO_LARGE"
    assert texts(await small.read(folder, FILE))
    small.close()


async def test_what_a_killed_writer_leaves_is_used_again(
    writer: ExplanationWriter, blobs: Blobs, folder: Folder
) -> None:
    await writer.put(COMPONENT, folder, scored("a"))
    leave(folder, "3/.5.jsonl.tmp", b"half of what was to be written, and more" * 100)
    assert list(await blobs.indices(folder, "3", ".jsonl") or ()) == [5]
    assert await blobs.files(folder, "3") == ["5.jsonl"]
    assert list(await blobs.versions(folder, "3")) == ["5.jsonl"]
    await writer.put(COMPONENT, folder, scored("b"))
    assert sorted(os.listdir(f"{folder.path}/3")) == [LOCK_FILE, "5.jsonl"]
    assert [text for text, _ in texts(await blobs.read(folder, FILE))] == ["a", "b"]


async def test_a_lock_that_is_kept_ends_the_call(
    writer: ExplanationWriter, blobs: Blobs, folder: Folder
) -> None:
    await writer.put(COMPONENT, folder, scored("a"))
    handle = os.open(Path(folder.path, "3", LOCK_FILE), os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(Unavailable) as caught:
            await asyncio.wait_for(writer.put(COMPONENT, folder, scored("b")), 30)
    finally:
        os.close(handle)
    assert caught.value.reason == "WRITE_CONFLICT"
    assert caught.value.retry_after_seconds
    assert not await writer.put(COMPONENT, folder, scored("b"))


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EACCES, "STORAGE_ACCESS_DENIED"), (errno.EROFS, "NOT_WRITABLE")],
)
async def test_a_folder_that_can_not_be_written_to(
    writer: ExplanationWriter,
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    reason: str,
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number), "/secret/place")

    monkeypatch.setattr(local, "write_atomically", refuse)
    with pytest.raises(FailedPrecondition) as caught:
        await writer.put(COMPONENT, folder, scored("a"))
    assert caught.value.reason == reason
    assert "secret" not in caught.value.message


async def test_a_write_is_finished_and_told_although_its_caller_goes(
    blobs: Blobs, folder: Folder
) -> None:
    """Else the caches would answer for a minute what it has replaced."""
    told: list[str] = []

    async def changed(component: Component, folder: Folder) -> None:
        told.append(component.explanation_file)

    writer = ExplanationWriter(blobs, changed)
    await writer.put(COMPONENT, folder, scored("a"))
    handle = os.open(Path(folder.path, "3", LOCK_FILE), os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    call = asyncio.create_task(writer.put(COMPONENT, folder, scored("b")))
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert told == [FILE]
    os.close(handle)
    await writer.close()
    assert told == [FILE, FILE]
    assert [text for text, _ in texts(await blobs.read(folder, FILE))] == ["a", "b"]


async def test_a_write_that_fails_is_told_too(folder: Folder) -> None:
    told: list[str] = []

    async def changed(component: Component, folder: Folder) -> None:
        told.append(component.explanation_file)

    made = Blobs(Storage(azure_endpoint="http://127.0.0.1:9", retries=0))
    with pytest.raises(Unavailable):
        writer = ExplanationWriter(made, changed)
        await writer.put(COMPONENT, Folder.trusted("az://nobody1/box"), scored("a"))
    assert told == [FILE]
    made.close()


async def test_a_store_that_hangs_is_no_rival(folder: Folder, monkeypatch: Any) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    store = Store()
    store.hanging_hosts = {"hangs2"}
    made = Blobs(store.settings(timeout_seconds=0.5))
    with pytest.raises(Unavailable) as caught:
        writer = ExplanationWriter(made, nobody)
        await writer.put(COMPONENT, Folder.trusted("az://hangs2/box"), scored("a"))
    assert caught.value.reason == "STORAGE_UNAVAILABLE"
    store.close()
    made.close()


@pytest.fixture
def blob_folder(azurite: Azurite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Folder:
    for variable, value in azurite.environment.items():
        monkeypatch.setenv(variable, value)
    azurite.create_container("acct", "writing")
    return Folder.trusted(f"az://acct/writing/{tmp_path.name}")


async def test_a_write_whose_answer_is_lost_is_not_repeated(
    azurite: Azurite, blob_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Blobs(Storage(azure_endpoint=azurite.endpoint))
    writer = ExplanationWriter(made, nobody)
    really, calls = conditional.put, list[str]()

    def put(context: Any, path: str, **options: Any) -> bool:
        calls.append(path)
        assert really(context, path, **options)
        raise blobfile.RequestFailure("lost", "PUT", 0, None, None)

    monkeypatch.setattr(conditional, "put", put)
    assert not await writer.put(COMPONENT, blob_folder, scored("a")), "it replaced only itself"
    assert len(calls) == 1
    assert texts(await made.read(blob_folder, FILE)) == [("a", 0.5)]
    made.close()


async def test_rivals_that_are_always_faster_end_the_call(
    azurite: Azurite, blob_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Blobs(Storage(azure_endpoint=azurite.endpoint, timeout_seconds=1.0))
    writer = ExplanationWriter(made, nobody)
    really = conditional.put
    monkeypatch.setattr(conditional, "put", lambda *given, **options: False)
    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(writer.put(COMPONENT, blob_folder, scored("a")), 30)
    assert caught.value.reason == "WRITE_CONFLICT"
    monkeypatch.setattr(conditional, "put", really)
    assert not await writer.put(COMPONENT, blob_folder, scored("a"))
    made.close()


def pairs_message(**changes: Any) -> v1.AttentionSimulation:
    columns = {
        "token_pair_coordinates": [[1.0, 0.0], [0.0, 0.0]],
        "token_pair_labels": [1.0, 0.0],
        "predictions": [0.75, np.nan],
        **changes,
    }
    return v1.AttentionSimulation(
        tokens=["a", "b"], **{name: to_tensor(np.array(rows)) for name, rows in columns.items()}
    )


def request(**parts: Any) -> v1.PutExplanationRequest:
    return v1.PutExplanationRequest(
        component=component_id("attn_write_norm", 0, 0),
        explanation_dataset="set",
        explanation="text",
        **parts,
    )


def request_of_pairs(score: float | None = 0.5, **changes: Any) -> v1.PutExplanationRequest:
    return request(
        scored_attention_simulation=v1.ScoredAttentionSimulation(
            attention_simulations=[pairs_message(**changes)], roc_auc_score=score
        )
    )


def test_token_pairs_are_stored_one_by_one() -> None:
    stored = stored_explanation(request_of_pairs(), by_token_pair=True)
    assert isinstance(stored, ScoredAttentionExplanation)
    first, second = stored.scored_attention_simulation.attention_simulations
    assert first == AttentionSimulation(["a", "b"], (1, 0), 1, 0.75)
    assert (second.token_pair_coords, second.token_pair_label) == ((0, 0), 0)
    assert np.isnan(second.simulation_prediction)
    assert stored.get_preferred_score() == 0.5
    empty = request(scored_attention_simulation=v1.ScoredAttentionSimulation())
    assert stored_explanation(empty, by_token_pair=True).get_preferred_score() is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"token_pair_labels": [1.0]}, "token_pair_labels"),
        ({"token_pair_labels": [1.0, 2.0]}, "token_pair_labels"),
        ({"token_pair_labels": [1.0, np.nan]}, "token_pair_labels"),
        ({"token_pair_coordinates": [1.0, 0.0]}, "token_pair_coordinates"),
        ({"token_pair_coordinates": [[2.0, 0.0], [0.0, 0.0]]}, "token_pair_coordinates"),
        ({"token_pair_coordinates": [[-1.0, 0.0], [0.0, 0.0]]}, "token_pair_coordinates"),
        ({"token_pair_coordinates": [[0.5, 0.0], [0.0, 0.0]]}, "token_pair_coordinates"),
        ({"token_pair_coordinates": [[1e300, 0.0], [0.0, 0.0]]}, "token_pair_coordinates"),
        ({"predictions": [[0.5, 0.5]]}, "predictions"),
        ({"predictions": [0.5, 1.5]}, "predictions"),
        ({"predictions": [0.5, np.inf]}, "predictions"),
    ],
)
def test_token_pairs_that_make_no_sense(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        stored_explanation(request_of_pairs(**changes), by_token_pair=True)
    prefix = "scored_attention_simulation.attention_simulations[0]"
    assert caught.value.field == f"{prefix}.{field}"


def test_other_requests_that_make_no_sense() -> None:
    both = request_of_pairs()
    both.scored_simulation.SetInParent()
    cases: list[tuple[v1.PutExplanationRequest, bool, str]] = [
        (request(), False, "scored_simulation"),
        (both, True, "scored_simulation"),
        (request_of_pairs(), False, "scored_attention_simulation"),
        (request_of_pairs(1.5), True, "scored_attention_simulation.roc_auc_score"),
        (request_of_pairs(-0.5), True, "scored_attention_simulation.roc_auc_score"),
        (request_of_pairs(np.inf), True, "scored_attention_simulation.roc_auc_score"),
    ]
    for wrong, by_token_pair, field in cases:
        with pytest.raises(InvalidArgument) as caught:
            stored_explanation(wrong, by_token_pair)
        assert caught.value.field == field


def test_pairs_that_would_repeat_too_many_tokens() -> None:
    count = 20_000
    message = v1.AttentionSimulation(
        tokens=["x" * 100] * 100,
        token_pair_coordinates=to_tensor(np.zeros((count, 2))),
        token_pair_labels=to_tensor(np.zeros(count)),
        predictions=to_tensor(np.zeros(count)),
    )
    large = request(
        scored_attention_simulation=v1.ScoredAttentionSimulation(attention_simulations=[message])
    )
    with pytest.raises(ResourceExhausted) as caught:
        stored_explanation(large, by_token_pair=True)
    assert caught.value.reason == "FILE_TOO_LARGE"


def test_scores_by_token_are_for_every_component() -> None:
    plain = request(scored_simulation=simulation.ScoredSimulation())
    for by_token_pair in (True, False):
        assert isinstance(stored_explanation(plain, by_token_pair), ScoredExplanation)
