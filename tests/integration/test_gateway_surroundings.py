"""What surrounds every request: origins, ids, time, health and pages, over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from shared.settings import Http, Limits
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
