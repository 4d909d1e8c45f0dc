"""Every reason that the record service may answer, by the real service, as the client reads it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from neuropil.errors import NeuropilError
from neuropil.names import DERIVED_SCALAR_TYPES, component_id
from neuropil.records import v1
from services.records.app import SERVICE
from services.records.reading import RecordReader
from services.records.search import search
from services.records.search.embedder import Embedder
from services.records.storage import remote
from shared.formats.records import NeuronId
from shared.formats.simulations import AttentionSimulationResults
from shared.settings import Dataset, Deployment, Limits, Search, Storage
from tests.emulators.azurite import Azurite
from tests.emulators.failing import Store
from tests.integration.records_running import (
    HEADS,
    MLP,
    World,
    connected,
    failure_of,
    put_request,
    serving,
    token_request,
)
from tests.unit.errors_in_source import CODES, SERVICES

EXPECTED = {reason for reason, services in SERVICES.items() if services & {"all", "records"}}
SHOWN: set[str] = set()
"""Reasons that the tests of this module have shown."""


def shown(error: NeuropilError, reason: str) -> NeuropilError:
    assert error.reason == reason, error
    assert error.code in CODES[reason]
    SHOWN.add(reason)
    return error


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Any]:
    async with serving(world.deployment()) as opened:
        yield opened


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
    running = Store()
    yield running
    running.close()


def far(path: str, storage: Storage, **options: Any) -> Deployment:
    """A deployment over a blob store."""
    dataset = Dataset(
        short_name="pub",
        derived_scalar_type=MLP,
        user_visible_name="far",
        neuron_dataset_path=path,
    )
    return Deployment(
        datasets=(dataset,), allowed_path_prefixes=(path,), storage=storage, **options
    )


def components_request(layer: int) -> v1.ListComponentsRequest:
    return v1.ListComponentsRequest(
        dataset=v1.DatasetId(dataset="pub", derived_scalar_type=DERIVED_SCALAR_TYPES.value(MLP)),
        layer_index=layer,
    )


def search_request() -> v1.SearchExplanationsRequest:
    return v1.SearchExplanationsRequest(
        dataset=v1.DatasetId(dataset="pub", derived_scalar_type=DERIVED_SCALAR_TYPES.value(MLP)),
        query="vowels",
        mode=v1.SEARCH_MODE_SEMANTIC,
    )


async def test_what_a_request_names_wrongly(stub: Any, world: World) -> None:
    negative = await failure_of(stub.GetTokenRecord(token_request(-1)))
    assert shown(negative, "INVALID_ARGUMENT").field == "component.component_index"
    unknown = await failure_of(stub.GetTokenRecord(token_request(0, "nobody")))
    assert shown(unknown, "UNKNOWN_DATASET").metadata == {"datasets": "nobody"}
    missing = await failure_of(stub.GetTokenRecord(token_request(99)))
    assert shown(missing, "RECORD_NOT_FOUND").metadata == {"datasets": world.path("mlp")}
    no_layer = await failure_of(stub.ListComponents(components_request(55)))
    assert shown(no_layer, "LAYER_NOT_FOUND").metadata == {"datasets": world.path("mlp")}
    outside = await failure_of(stub.GetTokenRecord(token_request(0, "/etc")))
    assert shown(outside, "PATH_NOT_ALLOWED").field == "datasets[0]"
    heads = v1.GetTokenPairRecordRequest(component=component_id(HEADS, 0, 0), datasets=["more"])
    other = await failure_of(stub.GetTokenPairRecord(heads))
    assert shown(other, "SCALAR_TYPE_DOES_NOT_FIT").metadata["derived_scalar_types"] == MLP
    simulations = v1.GetScoredSimulationsRequest(
        component=component_id(MLP, 0, 77), explanation_dataset=world.path("expl")
    )
    nothing = await failure_of(stub.GetScoredSimulations(simulations))
    assert shown(nothing, "NOT_FOUND").metadata == {"datasets": world.path("expl")}


async def test_files_that_can_not_be_read(
    stub: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt = await failure_of(stub.GetTokenRecord(token_request(17)))
    assert shown(corrupt, "CORRUPT_FILE").metadata["file"].endswith("0/17.json")
    with (world.root / "mlp/0/18.json").open("wb") as file:
        file.truncate(2**40)
    large = await failure_of(stub.GetTokenRecord(token_request(18)))
    assert shown(large, "FILE_TOO_LARGE").metadata["bytes"] == str(2**40)
    monkeypatch.setattr("services.records.storage.file_store.MAX_ENTRIES", 3)
    many = await failure_of(stub.ListComponents(components_request(0)))
    assert shown(many, "FOLDER_TOO_LARGE").metadata == {"limit": "3"}


async def test_an_answer_over_the_limit(world: World) -> None:
    sequence = {"tokens": ["x" * 1000] * 1500, "activations": [1.0] * 1500}
    content = {
        "dataclass_name": "NeuronRecord",
        "neuron_id": {"dataclass_name": "NeuronId", "neuron_index": 5, "layer_index": 0},
        "most_positive_activation_records": [{"dataclass_name": "ActivationRecord", **sequence}],
    }
    (world.root / "mlp/0/5.json").write_text(json.dumps(content))
    limits = Limits(message_megabytes=1)
    async with serving(world.deployment().model_copy(update={"limits": limits})) as stub:
        large = await failure_of(stub.GetTokenRecord(token_request(5)))
    assert shown(large, "REPLY_TOO_LARGE").metadata["limit"] == str(2**20)


async def test_explanations_that_can_not_be_put(stub: Any, world: World) -> None:
    (world.root / "open").write_text("a file where a folder was to be")
    blocked = await failure_of(stub.PutExplanation(put_request(world, "x", folder="open/new")))
    assert shown(blocked, "NOT_WRITABLE").field == "explanation_dataset"
    pairs = AttentionSimulationResults(NeuronId(5, 0), scored_explanations=[])
    world.write("expl/0/5.jsonl", pairs)
    other = await failure_of(stub.PutExplanation(put_request(world, "x", 5)))
    assert shown(other, "FAILED_PRECONDITION").field == "component"


async def test_storage_that_fails_or_refuses(
    store: Store, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.broken = True
    # Every read beyond the listing of a store that is broken is answered with 503.
    async with serving(far("az://broken/box/mlp", store.settings(retries=0))) as stub:
        broken = await failure_of(stub.ListComponents(components_request(0)))
    shown(broken, "STORAGE_UNAVAILABLE")
    assert broken.metadata["file"].startswith("az://broken/box/mlp")
    assert broken.retry_after_seconds is not None
    azurite.create_container("acct", "refusing")
    for name, value in {**azurite.environment, "AZURE_STORAGE_KEY": "d3Jvbmc="}.items():
        monkeypatch.setenv(name, value)
    settings = Storage(azure_endpoint=azurite.endpoint)
    async with serving(far("az://acct/refusing/mlp", settings)) as stub:
        refusing = await failure_of(stub.GetTokenRecord(token_request(0)))
    assert shown(refusing, "STORAGE_ACCESS_DENIED").metadata["file"].startswith("az://acct")


async def test_writers_that_are_always_faster(
    world: World, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the environment says of a section replaces one that is given as an object.
    environment = {**azurite.environment, "NEUROPIL_STORAGE__TIMEOUT_SECONDS": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    azurite.create_container("acct", "rivals")
    path = "az://acct/rivals/expl"
    settings = Storage()
    monkeypatch.setattr(remote.conditional, "put", lambda *given, **options: False)
    request = put_request(world, "x")
    request.explanation_dataset = path
    async with serving(far(path, settings)) as stub:
        conflict = await failure_of(stub.PutExplanation(request))
    assert shown(conflict, "WRITE_CONFLICT").retry_after_seconds is not None


async def test_search_by_meaning_that_does_not_work(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = world.deployment()
    off = on.model_copy(update={"search": Search(semantic=False)})
    async with serving(off) as stub:
        shown(await failure_of(stub.SearchExplanations(search_request())), "SEMANTIC_SEARCH_OFF")
    dying = [sys.executable, "-c", "raise SystemExit(1)"]
    with monkeypatch.context() as patch:
        patch.setattr(search, "is_installed", lambda: True)
        patch.setattr(search, "Embedder", lambda: Embedder(dying))
        async with serving(on) as stub:
            dead = await failure_of(stub.SearchExplanations(search_request()))
    assert shown(dead, "EMBEDDER_RESTARTING").retry_after_seconds is not None
    monkeypatch.setattr(search, "is_installed", lambda: False)
    async with serving(on) as stub:
        absent = await failure_of(stub.SearchExplanations(search_request()))
    assert "neuropil-services[search]" in shown(absent, "SEMANTIC_SEARCH_NOT_INSTALLED").message


async def test_a_request_that_is_no_message(world: World) -> None:
    async with connected(world.deployment()) as channel:
        method: Any = channel.unary_unary(f"/{SERVICE.full_name}/GetTokenRecord")
        cut = token_request(0).SerializeToString()[:-1]
        for data in (b"\xff", cut):
            shown(await failure_of(method(data)), "UNREADABLE_REQUEST")


async def test_too_many_calls_and_too_little_time(store: Store) -> None:
    store.hanging_hosts = {"hangs"}
    limits = Limits(queue=1, default_deadline_seconds=1.0)
    async with serving(far("az://hangs/box", store.settings(), limits=limits)) as stub:
        first = asyncio.ensure_future(failure_of(stub.GetTokenRecord(token_request(0))))
        await asyncio.sleep(0.3)
        full = await failure_of(stub.GetTokenRecord(token_request(1)))
        assert shown(full, "QUEUE_FULL").retry_after_seconds is not None
        shown(await first, "DEADLINE_EXCEEDED")
        store.go_on.set()


async def test_a_defect(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any, **options: Any) -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(RecordReader, "simulation_results", fail)
    request = v1.GetScoredSimulationsRequest(
        component=component_id(MLP, 0, 0), explanation_dataset="/expl"
    )
    defect = await failure_of(stub.GetScoredSimulations(request))
    assert "secret" not in shown(defect, "INTERNAL").message


def test_the_page_lists_exactly_what_was_shown() -> None:
    assert SHOWN == EXPECTED
