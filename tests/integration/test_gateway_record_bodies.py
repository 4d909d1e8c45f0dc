"""Hostile requests for records: each gets the status that says what is wrong, and where."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from shared.settings import Http
from tests.integration.gateway_records import BODY, Records
from tests.integration.gateway_running import gateway_to

JSON = {"content-type": "application/json"}
ROUTES = ("/neuron_record", "/attention_head_record", "/existing_explanations")
FITTING: dict[str, dict[str, Any]] = {
    "/neuron_record": BODY,
    "/attention_head_record": BODY,
    "/existing_explanations": {
        **{key: value for key, value in BODY.items() if key != "datasets"},
        "explanationDatasets": ["a"],
    },
}


# One gateway for all: each test only adds a few requests.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def recording() -> Records:
    return Records()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(recording: Records) -> AsyncIterator[httpx.AsyncClient]:
    http = Http(max_body_megabytes=1, answer_cache_megabytes=0)
    async with gateway_to(records=recording, http=http) as connected:
        yield connected


@pytest.fixture
def records(recording: Records) -> Records:
    recording.requests.clear()
    return recording


def _with(route: str, key: str, text: str) -> bytes:
    """A fitting body, but for one value written as `text`."""
    mark = "a mark that is replaced"
    return json.dumps(FITTING[route] | {key: mark}).replace(json.dumps(mark), text).encode()


def _check(answer: httpx.Response, status: int, field: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert {"message", "code", "reason", "field"} <= body.keys()
    assert body["message"]
    assert ("detail" in body) is (status == 422)
    assert "Traceback" not in answer.text
    if field is not None:
        assert body["field"] == field
        assert field in body["message"]
    return body


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("field", ["layerIndex", "activationIndex"])
@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("NaN", 400),
        ("Infinity", 400),
        ("-Infinity", 400),
        ("1e400", 400),
        ("-1e400", 400),
        ("1e300", 400),
        (str(2**63), 400),
        (str(2**70), 400),
        (str(-(2**70)), 400),
        ("1" * 4000, 400),
        ("-1", 400),
        ("-0.5", 400),
        ('"-1"', 400),
        ('"1e400"', 422),
        ('"NaN"', 422),
        ('"\u0665"', 422),
        ('"\\ud800"', 422),
        ("true", 422),
        ("null", 422),
        ("[5]", 422),
        ('{"index": 5}', 422),
        ('""', 422),
        ('"' + "5" * 5000 + '"', 400),
    ],
)
async def test_an_index_that_is_none_is_refused_by_name(
    client: httpx.AsyncClient, records: Records, route: str, field: str, text: str, status: int
) -> None:
    answer = await client.post(route, content=_with(route, field, text), headers=JSON)
    _check(answer, status, field)
    assert records.requests == []


@pytest.mark.parametrize("route", ["/neuron_record", "/existing_explanations"])
@pytest.mark.parametrize("text", ["5", "5.0", '"5"', '"5.0"', "5e0", "0.5e1"])
async def test_spellings_of_an_index_mean_the_same(
    client: httpx.AsyncClient, records: Records, route: str, text: str
) -> None:
    answer = await client.post(route, content=_with(route, "layerIndex", text), headers=JSON)
    assert answer.status_code == 200
    assert records.requests[0].component.layer_index == 5


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b" \r\n\t", 422),
        (b"null", 422),
        (b"true", 422),
        (b"-0", 422),
        (b"NaN", 422),
        (b'"text"', 422),
        (b"[]", 422),
        (b"[{}]", 422),
        (b"{}", 422),
        (b"{", 422),
        (b'{"dst":', 422),
        (b"{} {}", 422),
        (b"\x00", 422),
        (b"\xff\xfe\xfd", 400),
        (b'{"dst": "\xc0\xaf"}', 400),
        (b'{"dst": "\xed\xa0\x80"}', 422),
        (b"[" * 100_000, 400),
        (b"[" * 100_000 + b"]" * 100_000, 400),
        (b'{"dst":' * 100_000, 400),
        (b'{"datasets":' + b"[" * 2000 + b"]" * 2000 + b"}", 400),
        (b'{"layerIndex": ' + b"9" * 5000 + b"}", 400),
        (b"--boundary\r\ncontent-disposition: form-data\r\n", 422),
        (gzip.compress(b"{}"), 400),
    ],
)
async def test_a_body_that_is_no_request_is_refused_by_every_route(
    client: httpx.AsyncClient, records: Records, route: str, content: bytes, status: int
) -> None:
    _check(await client.post(route, content=content, headers=JSON), status)
    assert records.requests == []


async def test_the_last_of_duplicate_keys_counts(
    client: httpx.AsyncClient, records: Records
) -> None:
    text = json.dumps(BODY)
    twice = '{"layerIndex": -1, "datasets": 7, ' + text[1:]
    answer = await client.post("/neuron_record", content=twice.encode(), headers=JSON)
    assert answer.status_code == 200
    assert records.requests[0].component.layer_index == 1
    turned = text[:-1] + ', "layerIndex": -1}'
    refused = await client.post("/neuron_record", content=turned.encode(), headers=JSON)
    _check(refused, 400, "layerIndex")


@pytest.mark.parametrize("route", ["/neuron_record", "/attention_head_record"])
@pytest.mark.parametrize(
    ("datasets", "status", "field"),
    [
        ([], 400, "datasets"),
        (["a"] * 65, 400, "datasets"),
        (["a"] * 100_000, 400, "datasets"),
        ([["a"]], 422, "datasets[0]"),
        (["a", None], 422, "datasets[1]"),
        (["é" * 2049], 400, "datasets[0]"),
        (["a", "\udfff"], 400, "datasets[1]"),
    ],
)
async def test_datasets_that_are_none_are_refused_by_place(
    client: httpx.AsyncClient,
    records: Records,
    route: str,
    datasets: list[Any],
    status: int,
    field: str,
) -> None:
    body = json.dumps(BODY | {"datasets": datasets}).encode()
    _check(await client.post(route, content=body, headers=JSON), status, field)
    assert records.requests == []


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json", ";"],
)
async def test_what_is_not_said_to_be_json_is_refused(
    client: httpx.AsyncClient, records: Records, route: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    body = json.dumps(FITTING[route]).encode()
    _check(await client.post(route, content=body, headers=headers), 422)
    assert records.requests == []


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/problem+json",
    ],
)
async def test_json_may_be_said_in_several_ways(
    client: httpx.AsyncClient, content_type: str
) -> None:
    body = json.dumps(BODY).encode()
    headers = {"content-type": content_type}
    assert (await client.post("/neuron_record", content=body, headers=headers)).status_code == 200


async def test_a_plain_request_and_one_for_the_framework_get_the_same_answer(
    client: httpx.AsyncClient,
) -> None:
    ways = [
        (json.dumps(BODY), "application/json"),
        (json.dumps(BODY), "application/json; charset=utf-8"),
        (json.dumps(BODY | {"ignored": "x" * 5000}), "application/json"),
    ]
    for datasets in (["a"], ["invalid"], ["full"], ["defect"]):
        answers = []
        for body, content_type in ways:
            text = json.dumps({**json.loads(body), "datasets": datasets})
            headers = {"content-type": content_type, "x-request-id": "one"}
            answer = await client.post("/neuron_record", content=text, headers=headers)
            named = {**answer.headers, "date": ""}
            answers.append((answer.status_code, named, answer.content))
        assert answers[1:] == answers[:1] * 2


async def test_a_compressed_body_is_no_json_and_is_not_unpacked(
    client: httpx.AsyncClient, records: Records
) -> None:
    bomb = gzip.compress(json.dumps(BODY | {"more": "x" * (64 << 20)}).encode())
    assert len(bomb) < 1 << 20
    headers = JSON | {"content-encoding": "gzip"}
    _check(await client.post("/neuron_record", content=bomb, headers=headers), 400)
    assert records.requests == []


async def _raw(client: httpx.AsyncClient, request: bytes, *, end: bool = False) -> bytes:
    """What the gateway answers to these bytes; with `end` the client says that no more come."""
    url = client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write(request)
        if end:
            writer.write_eof()
        await writer.drain()
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


_HEAD = b"POST /neuron_record HTTP/1.1\r\nhost: h\r\nconnection: close\r\n"
_PLAIN = json.dumps(BODY).encode()


@pytest.mark.parametrize(
    "headers",
    [
        b"content-type: application/json\r\ncontent-length: -1\r\n",
        b"content-type: application/json\r\ncontent-length: 1e3\r\n",
        b"content-type: application/json\r\ncontent-length: 99999999999999999999999\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\nx: \x00\r\n",
        b"no colon\r\n",
    ],
)
async def test_headers_that_are_none_are_refused(
    client: httpx.AsyncClient, records: Records, headers: bytes
) -> None:
    answer = await _raw(client, _HEAD + headers + b"\r\n" + _PLAIN)
    assert answer.startswith(b"HTTP/1.1 4"), answer[:300]
    assert records.requests == []
    assert (await client.post("/neuron_record", json=BODY)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"transfer-encoding: chunked\r\n\r\n10\r\n{",
        b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"content-length: 500\r\n\r\n{",
        b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    ],
)
async def test_a_body_that_breaks_off_asks_nothing(
    client: httpx.AsyncClient, records: Records, body: bytes
) -> None:
    answer = await _raw(client, _HEAD + b"content-type: application/json\r\n" + body, end=True)
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:300]
    assert records.requests == []
    assert (await client.post("/neuron_record", json=BODY)).status_code == 200


async def test_two_content_types_are_read_as_the_framework_reads_them(
    client: httpx.AsyncClient, records: Records
) -> None:
    length = b"content-length: %d\r\n" % len(_PLAIN)
    kinds = b"content-type: text/plain\r\ncontent-type: application/json\r\n"
    answer = await _raw(client, _HEAD + kinds + length + b"\r\n" + _PLAIN)
    assert answer.startswith(b"HTTP/1.1 422"), answer[:300]
    assert records.requests == []


async def test_headers_of_a_proxy_change_nothing(
    client: httpx.AsyncClient, records: Records
) -> None:
    headers = {
        "x-forwarded-for": ", ,::1,%00",
        "x-forwarded-proto": "gopher",
        "x-forwarded-host": "[",
        "host": "elsewhere.example",
        "x-http-method-override": "DELETE",
        "x-original-url": "/docs",
        "expect": "nothing",
    }
    answer = await client.post("/neuron_record", json=BODY, headers=headers)
    assert answer.status_code == 200
    assert len(records.requests) == 1


async def test_a_header_without_end_is_refused(client: httpx.AsyncClient) -> None:
    answer = await _raw(client, _HEAD + b"x: " + b"y" * (1 << 20), end=True)
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:300]
    assert (await client.post("/neuron_record", json=BODY)).status_code == 200
