"""Answers that the gateway keeps, over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from neuropil.common import v1 as common
from neuropil.records import v1
from neuropil.tensors import to_tensor
from shared import errors
from shared.settings import Http
from tests.integration.gateway_running import Servicer, gateway_to

BODY = {"dst": "mlp_post_act", "layerIndex": 1, "activationIndex": 2, "datasets": ["d"]}


class Records(Servicer):
    """Counts its calls, waits where it is told to, and fails while `failure` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.waits = False
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.failure: errors.NeuropilError | None = None
        self.tokens = 1

    async def GetTokenRecord(self, request: Any, context: Any) -> Any:
        self.calls += 1
        call = self.calls
        self.entered.set()
        if self.waits:
            await self.release.wait()
        if self.failure is not None:
            raise self.failure
        values = to_tensor(np.full(self.tokens, call, dtype=np.float32))
        return v1.GetTokenRecordResponse(
            dataset=f"{request.component.component_index}",
            max_activation=call,
            top_sequences=common.TokenSequences(
                tokens=["x"] * self.tokens,
                sequence_lengths=[self.tokens],
                activations=values,
                normalized_activations=values,
            ),
        )

    async def ListExplanations(self, request: Any, context: Any) -> Any:
        self.calls += 1
        return v1.ListExplanationsResponse(explanations=[v1.Explanation(text=f"{self.calls}")])


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
async def client(records: Records) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway_to(records=records, http=Http(answer_cache_megabytes=1)) as connected:
        yield connected


async def test_a_kept_answer_is_the_same_with_an_id_of_its_own(
    client: httpx.AsyncClient, records: Records
) -> None:
    first, second = [
        await client.post("/neuron_record", json=BODY, headers={"origin": "http://localhost:3"})
        for _ in range(2)
    ]
    assert records.calls == 1
    assert second.status_code == 200
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"] == "application/json"
    assert second.headers["access-control-allow-origin"] == "http://localhost:3"
    assert second.headers.get_list("x-request-id") != first.headers.get_list("x-request-id")
    assert len(second.headers.get_list("x-request-id")) == 1


async def test_another_body_or_route_is_another_answer(
    client: httpx.AsyncClient, records: Records
) -> None:
    one = await client.post("/neuron_record", json=BODY)
    other = await client.post("/neuron_record", json=BODY | {"activationIndex": 3})
    assert (one.json()["dataset"], other.json()["dataset"]) == ("2", "3")
    assert (await client.post("/attention_head_record", json=BODY)).status_code == 501
    # Not said to be JSON, it is not the request that was answered.
    plain = await client.post(
        "/neuron_record", content=one.request.content, headers={"content-type": "text/plain"}
    )
    assert plain.status_code == 422
    assert records.calls == 2


async def test_a_body_of_another_content_type_is_another_request(
    client: httpx.AsyncClient, records: Records
) -> None:
    content = json.dumps(BODY).encode()

    async def ask(*content_type: str) -> httpx.Response:
        headers = [("content-type", each) for each in content_type]
        return await client.post("/neuron_record", content=content, headers=headers)

    # Refused first: that is no answer to the same bytes as JSON, nor the other way round.
    for _ in range(2):
        assert (await ask("text/plain")).status_code == 422
        assert (await ask()).status_code == 422
        assert (await ask("application/json")).json()["maxActivation"] == 1
    assert records.calls == 1
    again = await ask("application/json; charset=utf-8")
    assert again.status_code == 200
    assert again.headers["content-type"] == "application/json"
    assert records.calls == 2
    # Nobody waits for the same bytes as something else.
    records.waits = True
    records.entered.clear()
    asking = asyncio.create_task(ask("application/vnd.neuropil+json"))
    await asyncio.wait_for(records.entered.wait(), 5)
    assert (await asyncio.wait_for(ask("text/plain"), 5)).status_code == 422
    records.release.set()
    assert (await asking).status_code == 200


async def test_only_posts_are_kept(client: httpx.AsyncClient, records: Records) -> None:
    assert (await client.post("/neuron_record", json=BODY)).status_code == 200
    content = json.dumps(BODY).encode()
    for method in ("GET", "PUT", "DELETE"):
        answer = await client.request(
            method, "/neuron_record", content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 405
    assert records.calls == 1


async def test_spellings_of_one_request_are_answered_alike(
    client: httpx.AsyncClient, records: Records
) -> None:
    # They are kept apart, as nothing is parsed: the same record, asked for twice.
    spaced = json.dumps(BODY, indent=1).encode()
    headers = {"content-type": "application/json"}
    one = await client.post("/neuron_record", json=BODY)
    other = await client.post("/neuron_record", content=spaced, headers=headers)
    assert (one.status_code, other.status_code) == (200, 200)
    assert one.json()["dataset"] == other.json()["dataset"]
    assert records.calls == 2


async def test_failures_and_explanations_are_never_kept(
    client: httpx.AsyncClient, records: Records
) -> None:
    records.failure = errors.NotFound("none")
    assert (await client.post("/neuron_record", json=BODY)).status_code == 404
    records.failure = None
    assert (await client.post("/neuron_record", json=BODY)).status_code == 200
    asked = BODY | {"explanationDatasets": [], "neuronDataset": "d"}
    for expected in ("3", "4"):
        answer = await client.post("/existing_explanations", json=asked)
        assert answer.json()[0]["explanation"] == expected


async def test_requests_for_one_answer_make_one_call(
    client: httpx.AsyncClient, records: Records
) -> None:
    records.waits = True
    asking = [asyncio.create_task(client.post("/neuron_record", json=BODY)) for _ in range(32)]
    await asyncio.wait_for(records.entered.wait(), 5)
    late = await client.post("/neuron_record", json=BODY, headers={"x-timeout-seconds": "0.2"})
    assert late.status_code == 504
    records.release.set()
    answers = await asyncio.gather(*asking)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    # The one that had no time left may have asked for itself.
    assert records.calls <= 2


async def test_who_waited_for_one_that_left_asks_again(
    client: httpx.AsyncClient, records: Records
) -> None:
    records.waits = True
    leaving = asyncio.create_task(client.post("/neuron_record", json=BODY))
    await asyncio.wait_for(records.entered.wait(), 5)
    staying = [asyncio.create_task(client.post("/neuron_record", json=BODY)) for _ in range(8)]
    await asyncio.sleep(0.1)
    leaving.cancel()
    records.release.set()
    answers = await asyncio.gather(*staying)
    assert {answer.status_code for answer in answers} == {200}
    assert records.calls <= 2


async def test_who_waited_for_a_failure_learns_its_own(
    client: httpx.AsyncClient, records: Records
) -> None:
    records.waits, records.failure = True, errors.DataLoss("broken")
    asking = [asyncio.create_task(client.post("/neuron_record", json=BODY)) for _ in range(4)]
    await asyncio.wait_for(records.entered.wait(), 5)
    records.release.set()
    assert {answer.status_code for answer in await asyncio.gather(*asking)} == {502}


async def test_one_failure_does_not_make_all_ask(
    client: httpx.AsyncClient, records: Records
) -> None:
    records.waits = True
    failing = asyncio.create_task(
        client.post("/neuron_record", json=BODY, headers={"x-timeout-seconds": "0.3"})
    )
    await asyncio.wait_for(records.entered.wait(), 5)
    asking = [asyncio.create_task(client.post("/neuron_record", json=BODY)) for _ in range(32)]
    assert (await failing).status_code == 504
    await asyncio.sleep(0.2)
    records.release.set()
    assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}
    assert records.calls == 2


@pytest.mark.parametrize(("url", "padding"), [("/neuron_record?x=1", 0), ("/neuron_record", 8_000)])
async def test_requests_that_would_fill_the_memory_are_not_kept(
    client: httpx.AsyncClient, records: Records, url: str, padding: int
) -> None:
    body = json.dumps(BODY) + " " * padding
    for _ in range(2):
        answer = await client.post(url, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 200
    assert records.calls == 2


async def test_an_answer_grows_old(records: Records) -> None:
    http = Http(answer_cache_megabytes=1, answer_cache_seconds=0.05)
    async with gateway_to(records=records, http=http) as client:
        await client.post("/neuron_record", json=BODY)
        await asyncio.sleep(0.1)
        assert (await client.post("/neuron_record", json=BODY)).json()["maxActivation"] == 2


async def test_kept_answers_are_bounded_in_bytes(
    client: httpx.AsyncClient, records: Records
) -> None:
    # 400 KB each: the third displaces the first.
    records.tokens = 8_000
    for index in (0, 1, 2, 0):
        answer = await client.post("/neuron_record", json=BODY | {"activationIndex": index})
        assert answer.status_code == 200
        assert len(answer.content) > 350_000
    assert records.calls == 4
    # One that is larger than all room is given, and not kept.
    records.tokens = 40_000
    for _ in range(2):
        answer = await client.post("/neuron_record", json=BODY | {"activationIndex": 9})
        assert len(answer.json()["topActivations"][0]) == 40_000
    assert records.calls == 6


async def test_without_room_nothing_is_kept(records: Records) -> None:
    async with gateway_to(records=records, http=Http(answer_cache_megabytes=0)) as client:
        for _ in range(2):
            assert (await client.post("/neuron_record", json=BODY)).status_code == 200
    assert records.calls == 2


async def test_kept_answers_outlive_the_service() -> None:
    records = Records()
    async with gateway_to(records=records) as client:
        first = await client.post("/neuron_record", json=BODY)
        records.failure = errors.Unavailable("gone")
        assert (await client.post("/neuron_record", json=BODY)).content == first.content
