"""Requests that were served before, found by their bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuropil.names import component_id
from neuropil.records import v1
from services.records import served_requests
from services.records.caching.replies import ReplyCache
from services.records.components import View
from services.records.convert import component_of, encoders, view_of
from services.records.datasets import DatasetRegistry
from services.records.reading import RecordReader
from services.records.served_requests import ServedRequests
from services.records.storage.blobs import Blobs
from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.settings import Dataset, Storage

MLP = "mlp_post_act"


@pytest.fixture
def reader(tmp_path: Path) -> RecordReader:
    for index in range(3):
        record = NeuronRecord(
            NeuronId(index, 0),
            most_positive_activation_records=[ActivationRecord([float(index)], ["a"])],
        )
        write_atomically(tmp_path / "0" / f"{index}.json", encode(record))
    dataset = Dataset(
        short_name="pub",
        derived_scalar_type=MLP,
        user_visible_name="pub",
        neuron_dataset_path=str(tmp_path),
    )
    return RecordReader(
        DatasetRegistry((dataset,), ()),
        Blobs(Storage()),
        ReplyCache(2**20),
        encoders(),
        ttl_seconds=60,
        max_reply_bytes=2**20,
    )


def asked(index: int = 0, *, dataset: str = "pub", **view: bool) -> v1.GetTokenRecordRequest:
    return v1.GetTokenRecordRequest(
        component=component_id(MLP, 0, index), datasets=[dataset], view=v1.RecordView(**view)
    )


async def serve(
    reader: RecordReader, served: ServedRequests, request: v1.GetTokenRecordRequest
) -> bytes:
    component, view = component_of(request.component), view_of(request.view)
    reply = await reader.token_record(component, request.datasets, view)
    served.served(request, component, view)
    return reply


def found(served: ServedRequests, request: v1.GetTokenRecordRequest) -> bytes | None:
    return served.reply(request.SerializeToString(deterministic=True))


async def test_only_what_was_served_is_found(reader: RecordReader) -> None:
    served = ServedRequests(reader)
    assert found(served, asked()) is None
    replies = {index: await serve(reader, served, asked(index)) for index in (0, 1)}
    assert {index: found(served, asked(index)) for index in (0, 1, 2)} == {**replies, 2: None}
    assert replies[0] != replies[1]
    assert found(served, asked(include_moments=True)) is None
    assert ServedRequests(reader).reply(asked().SerializeToString()) is None
    for data in (b"", b"\xff", b"x" * 10_000):
        assert served.reply(data) is None


async def test_a_view_is_another_request(reader: RecordReader) -> None:
    served = ServedRequests(reader)
    plain = await serve(reader, served, asked())
    view = asked(include_quantile_samples=True, include_moments=True)
    await serve(reader, served, view)
    assert found(served, asked()) == plain
    assert found(served, view) is not None


async def test_what_has_left_memory_is_not_found(reader: RecordReader) -> None:
    served = ServedRequests(reader)
    reply = await serve(reader, served, asked())
    key = reader.first_key(component_of(asked().component), ["pub"], View())
    assert reader.kept_record(key) == reply
    await reader._cache.forget(key)
    assert found(served, asked()) is None
    assert await serve(reader, served, asked()) == reply
    assert found(served, asked()) == reply


async def test_the_oldest_requests_leave_first(
    reader: RecordReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_requests, "MAX_REQUESTS", 2)
    served = ServedRequests(reader)
    for index in (0, 1, 1, 2):
        await serve(reader, served, asked(index))
    assert [found(served, asked(index)) is not None for index in range(3)] == [False, True, True]


async def test_a_long_request_is_not_kept(reader: RecordReader) -> None:
    served = ServedRequests(reader)
    request = asked()
    request.datasets.extend([f"unknown{number:03}" for number in range(63)] * 2)
    assert len(request.SerializeToString()) > served_requests.MAX_REQUEST_BYTES
    await serve(reader, served, request)
    assert found(served, request) is None
