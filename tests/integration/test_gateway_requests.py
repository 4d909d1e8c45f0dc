"""What clients may send, and what they get for it, over a socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from neuropil.common import v1 as common
from neuropil.names import DERIVED_SCALAR_TYPES
from neuropil.records import v1
from services.gateway.server import make_server
from shared.settings import Deployment, Http, Limits
from tests.integration.gateway_records import BODY, Records
from tests.integration.gateway_running import Servicer, gateway_to


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
async def client(records: Records) -> AsyncIterator[httpx.AsyncClient]:
    settings = {
        "http": Http(
            cors_origins=("https://viewer.example",),
            max_body_megabytes=1,
            answer_cache_megabytes=0,
        )
    }
    async with gateway_to(records=records, **settings) as connected:
        yield connected


async def test_a_body_is_translated(client: httpx.AsyncClient, records: Records) -> None:
    answer = await client.post("/neuron_record", json=BODY)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "dataset": "a",
        "maxActivation": 2.0,
        "topActivations": [[{"token": "x", "scalar": 2.0, "normalizedScalar": 1.0}]],
        "randomSample": [],
    }
    (request,) = records.requests
    assert request.component == common.ComponentId(
        derived_scalar_type=DERIVED_SCALAR_TYPES.value("mlp_post_act"),
        layer_index=1,
        component_index=2,
    )
    assert list(request.datasets) == ["a", "b"]
    assert request.view == v1.RecordView()


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_index": 1, "layerIndex": None},
        {"activationIndex": "2"},
        {"activationIndex": 2.0},
        {"activationIndex": " 2 "},
        {"activationIndex": "2.0"},
        {"somethingElse": {"of": ["no", "concern"]}},
    ],
)
async def test_other_spellings_mean_the_same(
    client: httpx.AsyncClient, records: Records, changes: dict[str, Any]
) -> None:
    await client.post("/neuron_record", json=BODY)
    changed = {key: value for key, value in {**BODY, **changes}.items() if value is not None}
    answer = await client.post("/neuron_record", json=changed)
    assert answer.status_code == 200
    assert records.requests[0] == records.requests[1]


async def test_what_else_of_a_record_is_asked_for(
    client: httpx.AsyncClient, records: Records
) -> None:
    more = {"includeQuantileSamples": True, "include_moments": True}
    await client.post("/neuron_record", json=BODY | more)
    assert records.requests[0].view == v1.RecordView(
        include_quantile_samples=True, include_moments=True
    )


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"activationIndex": None}, 422, "activationIndex"),
        ({"activationIndex": "two"}, 422, "activationIndex"),
        ({"activationIndex": [2]}, 422, "activationIndex"),
        ({"dst": "nope"}, 422, "dst"),
        ({"dst": 4}, 422, "dst"),
        ({"datasets": "a"}, 422, "datasets"),
        ({"datasets": [1]}, 422, "datasets[0]"),
        ({"datasets": {}}, 422, "datasets"),
        ({"activationIndex": -1}, 400, "activationIndex"),
        ({"layerIndex": "-1"}, 400, "layerIndex"),
        ({"activationIndex": 2.7}, 400, "activationIndex"),
        ({"activationIndex": True}, 422, "activationIndex"),
        ({"activationIndex": "1_0"}, 422, "activationIndex"),
        ({"activationIndex": "nan"}, 422, "activationIndex"),
        ({"activationIndex": "2.7"}, 400, "activationIndex"),
        ({"activationIndex": 2**63}, 400, "activationIndex"),
        ({"activationIndex": 1e300}, 400, "activationIndex"),
        ({"datasets": []}, 400, "datasets"),
        ({"datasets": ["a"] * 65}, 400, "datasets"),
        ({"datasets": [{}] * 100_000}, 400, "datasets"),
        ({"datasets": ["a" * 5000]}, 400, "datasets[0]"),
        ({"datasets": ["\ud800"]}, 400, "datasets[0]"),
    ],
)
async def test_what_does_not_fit_is_422_and_what_is_impossible_400(
    client: httpx.AsyncClient,
    records: Records,
    changes: dict[str, Any],
    status: int,
    field: str,
) -> None:
    answer = await client.post(
        "/neuron_record",
        content=json.dumps(BODY | changes).encode(),
        headers={"content-type": "application/json"},
    )
    body = answer.json()
    assert answer.status_code == status, body
    assert body["field"] == field
    assert body["code"] == "INVALID_ARGUMENT"
    assert field in body["message"]
    if status == 422:
        (detail, *_) = body["detail"]
        assert detail["loc"][0] == "body"
        assert detail.keys() == {"loc", "msg", "type"}
    assert records.requests == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{not json", 422),
        (b"", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"null", 422),
        (b"NaN", 422),
        (b'{"dst": "\xff"}', 400),
        (b"[" * 100_000, 400),
        (b'{"activationIndex": ' + b"1" * 5000 + b"}", 400),
        (b'{"\\ud800": {"dst": "\\ud800"}, "datasets": {"\\ud800": 1}}', 422),
        (b'{"dst": NaN, "layerIndex": Infinity, "activationIndex": NaN, "datasets": []}', 422),
    ],
)
async def test_a_body_that_is_no_request_is_refused(
    client: httpx.AsyncClient, content: bytes, status: int
) -> None:
    answer = await client.post(
        "/neuron_record", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    assert {"message", "code", "reason", "field"} <= answer.json().keys()
    assert ("detail" in answer.json()) is (status == 422)


async def test_a_body_that_is_not_said_to_be_json_is_refused(client: httpx.AsyncClient) -> None:
    # A page of any origin can send text/plain without asking first.
    answer = await client.post(
        "/neuron_record", content=json.dumps(BODY), headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 422


async def test_a_large_body_is_refused_whether_its_length_is_said_or_not(
    client: httpx.AsyncClient, records: Records
) -> None:
    large = json.dumps(BODY | {"more": "x" * (1 << 20)}).encode()

    async def in_pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 1 << 16):
            yield large[start : start + (1 << 16)]

    headers = {"content-type": "application/json", "origin": "http://localhost:3000"}
    for content in (large, in_pieces()):
        answer = await client.post("/neuron_record", content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.json()["reason"] == "REQUEST_TOO_LARGE"
        assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert records.requests == []
    just_fits = BODY | {"more": "x" * ((1 << 20) - 200)}
    assert (await client.post("/neuron_record", json=just_fits)).status_code == 200


@pytest.mark.parametrize("announced", [True, False])
async def test_who_listens_only_after_sending_hears_that_the_body_is_too_large(
    client: httpx.AsyncClient, announced: bool
) -> None:
    length = "content-length: 1900000" if announced else "transfer-encoding: chunked"
    body = b"x" * 1_900_000
    if not announced:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    def answer() -> bytes:
        address = (client.base_url.host, client.base_url.port or 80)
        with socket.create_connection(address, timeout=20) as connection:
            # As what doesn't fit on the way: no buffer holds it for a server that doesn't read.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
            head = f"POST /neuron_record HTTP/1.1\r\nhost: x\r\n{length}\r\n"
            connection.sendall(
                f"{head}connection: close\r\ncontent-type: application/json\r\n\r\n".encode() + body
            )
            return connection.recv(1 << 16)

    assert (await asyncio.to_thread(answer)).startswith(b"HTTP/1.1 413 ")


def test_connections_are_kept_for_longer_than_clients_and_proxies_keep_them() -> None:
    # nginx and the load balancers of clouds keep idle ones for a minute.
    assert make_server(Deployment(), lambda: None).config.timeout_keep_alive > 60


async def test_failures_of_the_service_reach_the_client(client: httpx.AsyncClient) -> None:
    invalid = await client.post("/neuron_record", json=BODY | {"datasets": ["invalid"]})
    assert invalid.status_code == 400
    assert invalid.json() == {
        "message": "layerIndex: must be below 4",
        "code": "INVALID_ARGUMENT",
        "reason": "INVALID_ARGUMENT",
        "field": "layerIndex",
    }
    full = await client.post("/neuron_record", json=BODY | {"datasets": ["full"]})
    assert (full.status_code, full.headers["retry-after"]) == (429, "3")


async def test_only_datasets_that_the_viewer_knows_are_listed(client: httpx.AsyncClient) -> None:
    answer = await client.post("/neuron_datasets_metadata")
    assert [each["shortName"] for each in answer.json()] == ["d0", "d1", "d3"]
    assert answer.json()[1] == {
        "shortName": "d1",
        "derivedScalarType": "residual",
        "userVisibleName": "D",
        "neuronDatasetPath": "/d",
    }


async def test_explanations_that_could_not_be_read_are_named_in_a_header(
    client: httpx.AsyncClient, records: Records
) -> None:
    body = {**BODY, "explanationDatasets": ["/a", "/b"]}
    whole = await client.post("/existing_explanations", json=body)
    assert whole.json() == [
        {"explanation": "t", "score": 0.5, "datasetName": "a"},
        {"explanation": "u", "score": None, "datasetName": ""},
    ]
    assert "x-neuropil-partial" not in whole.headers
    assert list(records.requests[0].explanation_datasets.paths) == ["/a", "/b"]
    partial = await client.post("/existing_explanations", json=body | {"activationIndex": 7})
    assert partial.status_code == 200
    assert partial.headers["x-neuropil-partial"] == "/donn%C3%A9es/b%2Cc,/d"
    named = BODY | {"explanationDatasets": [], "neuronDataset": "demo"}
    assert (await client.post("/existing_explanations", json=named)).status_code == 200
    assert records.requests[2].neuron_dataset == "demo"


async def test_an_answer_over_the_message_limit_is_413() -> None:
    class Large(Servicer):
        async def ListDatasets(self, request: Any, context: Any) -> Any:
            return v1.ListDatasetsResponse(datasets=[v1.Dataset(short_name="x" * (2 << 20))])

    async with gateway_to(records=Large(), limits=Limits(message_megabytes=1)) as client:
        answer = await client.post("/neuron_datasets_metadata")
        assert (answer.status_code, answer.json()["reason"]) == (413, "REPLY_TOO_LARGE")
