"""What clients may send, and what surrounds every request, over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from neuropil.common import v1 as common
from neuropil.names import DERIVED_SCALAR_TYPES
from neuropil.records import v1
from neuropil.tensors import to_tensor
from shared import errors
from shared.rpc.context import request_id, seconds_left
from shared.settings import Http, Limits
from tests.integration.gateway_running import Servicer, gateway_to

BODY = {"dst": "mlp_post_act", "layerIndex": 1, "activationIndex": 2, "datasets": ["a", "b"]}


class Records(Servicer):
    """Notes what it was asked, and fails where a dataset's name says so."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Any] = []
        self.request_ids: list[str] = []
        self.seconds_left: list[float | None] = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def GetTokenRecord(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.request_ids.append(request_id())
        self.seconds_left.append(seconds_left())
        first = request.datasets[0] if request.datasets else ""
        if first == "wait":
            self.entered.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if first == "defect":
            raise ZeroDivisionError("a secret of ours")
        if first == "invalid":
            raise errors.InvalidArgument(
                "component.layer_index: must be below 4", field="component.layer_index"
            )
        if first == "full":
            raise errors.ResourceExhausted("full", reason="QUEUE_FULL", retry_after_seconds=2.5)
        if first == "broken":
            # What a defective service might send: columns that do not fit each other.
            return v1.GetTokenRecordResponse(
                top_sequences=common.TokenSequences(tokens=["a"], sequence_lengths=[1])
            )
        return v1.GetTokenRecordResponse(
            dataset=first,
            max_activation=2.0,
            top_sequences=common.TokenSequences(
                tokens=["x"],
                sequence_lengths=[1],
                activations=to_tensor(np.float32([2.0])),
                normalized_activations=to_tensor(np.float32([1.0])),
            ),
        )

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        names = ["mlp_post_act", "residual", "attn_qk_probs", "attn_write_norm"]
        return v1.ListDatasetsResponse(
            datasets=[
                v1.Dataset(
                    short_name=f"d{index}",
                    derived_scalar_type_name=name,
                    user_visible_name="D",
                    neuron_dataset_path="/d",
                )
                for index, name in enumerate(names)
            ]
        )

    async def ListExplanations(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        failures = [
            v1.Failure(
                code="DATA_LOSS", reason="CORRUPT_FILE", message="m", dataset="/données/b,c"
            ),
            v1.Failure(code="DATA_LOSS", reason="CORRUPT_FILE", message="m", dataset="/d"),
        ]
        return v1.ListExplanationsResponse(
            explanations=[
                v1.Explanation(text="t", score=0.5, dataset_name="a", dataset="/a"),
                v1.Explanation(text="u", dataset_name="", dataset="/a/"),
            ],
            failures=failures if request.component.component_index == 7 else [],
        )


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


@pytest.mark.parametrize("dataset", ["defect", "broken"])
async def test_a_defect_is_500_with_a_fixed_text_and_cors(
    client: httpx.AsyncClient, dataset: str
) -> None:
    answer = await client.post(
        "/neuron_record",
        json=BODY | {"datasets": [dataset]},
        headers={"origin": "http://127.0.0.1:3000", "x-request-id": "one"},
    )
    assert answer.status_code == 500
    assert answer.json()["code"] == "INTERNAL"
    assert "secret" not in answer.text
    assert "column" not in answer.text
    assert answer.headers["access-control-allow-origin"] == "http://127.0.0.1:3000"
    assert answer.headers["x-request-id"] == "one"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost", True),
        ("http://localhost:1234", True),
        ("https://127.0.0.1:8443", True),
        ("http://[::1]:5173", True),
        ("https://viewer.example", True),
        ("http://viewer.example", False),
        ("https://viewer.example:444", False),
        ("http://localhost.evil.example", False),
        ("http://evil.example", False),
        ("http://127.0.0.1.evil.example:80", False),
        ("null", False),
    ],
)
async def test_pages_of_allowed_origins_may_call(
    client: httpx.AsyncClient, origin: str, allowed: bool
) -> None:
    preflight = await client.options(
        "/neuron_record",
        headers={
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,x-request-id",
        },
    )
    call = await client.post("/neuron_record", json=BODY, headers={"origin": origin})
    missing = await client.post("/nope", json={}, headers={"origin": origin})
    expected = origin if allowed else None
    assert preflight.headers.get("access-control-allow-origin") == expected
    assert preflight.status_code == (200 if allowed else 400)
    for answer in (call, missing):
        assert answer.headers.get("access-control-allow-origin") == expected
        assert answer.headers["access-control-allow-credentials"] == "true"
    if allowed:
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "content-type" in preflight.headers["access-control-allow-headers"]
        assert "X-Neuropil-Partial" in call.headers["access-control-expose-headers"]


async def test_the_request_id_goes_along_and_comes_back(
    client: httpx.AsyncClient, records: Records
) -> None:
    kept = await client.post("/neuron_record", json=BODY, headers={"x-request-id": "abc-1.2"})
    made = await client.post("/neuron_record", json=BODY, headers={"x-request-id": "a b" * 99})
    assert kept.headers["x-request-id"] == "abc-1.2"
    assert records.request_ids == ["abc-1.2", made.headers["x-request-id"]]
    assert len(made.headers["x-request-id"]) == 32


async def test_the_requests_time_goes_along_and_ends_it(
    client: httpx.AsyncClient, records: Records
) -> None:
    await client.post("/neuron_record", json=BODY)
    await client.post("/neuron_record", json=BODY, headers={"x-timeout-seconds": "7.5"})
    assert records.seconds_left[0] is not None
    assert 50 < records.seconds_left[0] <= 60
    assert records.seconds_left[1] is not None
    # The wire rounds up a little.
    assert 0 < records.seconds_left[1] < 8
    late = await client.post(
        "/neuron_record", json=BODY | {"datasets": ["wait"]}, headers={"x-timeout-seconds": "0.2"}
    )
    assert late.status_code == 504
    assert late.json()["code"] == "DEADLINE_EXCEEDED"
    await asyncio.wait_for(records.cancelled.wait(), 5)


@pytest.mark.parametrize("sent", ["0", "-1", "nan", "inf", "soon", "1e9", ""])
async def test_a_time_that_is_none_is_refused(
    client: httpx.AsyncClient, records: Records, sent: str
) -> None:
    headers = {"x-timeout-seconds": sent, "origin": "http://localhost:1"}
    answer = await client.post("/neuron_record", json=BODY, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["field"] == "x-timeout-seconds"
    assert answer.headers["access-control-allow-origin"] == "http://localhost:1"
    assert records.requests == []


async def test_a_client_that_leaves_takes_its_call_with_it(
    client: httpx.AsyncClient, records: Records
) -> None:
    body = BODY | {"datasets": ["wait"]}
    call = asyncio.create_task(client.post("/neuron_record", json=body))
    await asyncio.wait_for(records.entered.wait(), 5)
    call.cancel()
    await asyncio.wait_for(records.cancelled.wait(), 5)
    # The gateway is well afterwards.
    assert (await client.post("/neuron_record", json=BODY)).status_code == 200


async def test_a_service_that_is_not_there_is_503_without_its_address(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/score", json=BODY | {"explanation": "e"})
    assert answer.status_code == 503
    assert answer.json()["reason"] == "SERVICE_UNAVAILABLE"
    assert "127.0.0.1" not in answer.text


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


@pytest.mark.parametrize("path", ["/explain", "/batched", "/batched_tdb"])
async def test_routes_of_later_releases_are_501(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json={"any": "thing"})
    assert answer.status_code == 501
    assert answer.json()["code"] == "UNIMPLEMENTED"
    assert path in answer.json()["message"]


async def test_the_front_page_greets_programs_and_people(client: httpx.AsyncClient) -> None:
    program = await client.get("/")
    assert program.json() == {"Hello": "World"}
    person = await client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*"})
    assert person.headers["content-type"].startswith("text/html")
    assert 'href="docs"' in person.text


async def test_the_documents_are_there(client: httpx.AsyncClient) -> None:
    assert "swagger" in (await client.get("/docs")).text.lower()
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/neuron_record"]["post"]
    assert operation["operationId"] == "read-neuron_record"
    score = document["components"]["schemas"]["AttributedScoredExplanation"]["properties"]["score"]
    assert score["type"] == "number"
    assert '"null"' not in json.dumps(document)


async def test_unknown_routes_and_methods(client: httpx.AsyncClient) -> None:
    missing = await client.post("/nope", json={})
    assert (missing.status_code, missing.json()["message"]) == (404, "Not Found")
    wrong = await client.get("/neuron_record")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


async def test_health_is_that_of_all_services(records: Records) -> None:
    async with gateway_to(records=records) as lonely:
        answer = await lonely.get("/healthz")
        assert answer.status_code == 503
        assert answer.json() == {"records": True, "simulation": False}
    async with gateway_to(records=records, scalars=Servicer(), simulation=Servicer()) as complete:
        answer = await complete.get("/healthz")
        assert answer.status_code == 200
        assert answer.json() == {"records": True, "scalars": True, "simulation": True}


async def test_the_default_time_is_the_deployments(records: Records) -> None:
    limits = Limits(default_deadline_seconds=0.2)
    async with gateway_to(records=records, limits=limits) as hasty:
        answer = await hasty.post("/neuron_record", json=BODY | {"datasets": ["wait"]})
        assert answer.status_code == 504


async def test_an_answer_over_the_message_limit_is_413() -> None:
    class Large(Servicer):
        async def ListDatasets(self, request: Any, context: Any) -> Any:
            return v1.ListDatasetsResponse(datasets=[v1.Dataset(short_name="x" * (2 << 20))])

    async with gateway_to(records=Large(), limits=Limits(message_megabytes=1)) as client:
        answer = await client.post("/neuron_datasets_metadata")
        assert (answer.status_code, answer.json()["reason"]) == (413, "REPLY_TOO_LARGE")
