"""The shared server, through a socket and the generated stubs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from neuropil.channel import open_aio_channel
from neuropil.errors import NeuropilError, atranslated
from neuropil.records import v1 as records
from shared import errors
from shared.rpc.channel import open_service_channel
from shared.rpc.interceptors.errors import INTERNAL_TEXT
from shared.rpc.server import RpcService, RunningServer, ServerOptions, start_server
from shared.settings import Limits
from tests.integration.rpc_probe import SERVICE, Probe, batch, components, failure_of, layers_of


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
async def running(probe: Probe) -> AsyncIterator[RunningServer]:
    options = ServerOptions("records", limits=Limits(queue=2, default_deadline_seconds=5))
    server = await start_server([RpcService(SERVICE, probe)], options)
    yield server
    probe.release.set()
    await server.drain(1)


@pytest.fixture
async def channel(running: RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    async with open_aio_channel(f"127.0.0.1:{running.port}") as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> records.RecordReaderStub:
    return records.RecordReaderStub(channel)


async def test_a_reply_of_bytes_goes_to_the_wire_as_it_is(stub: Any) -> None:
    answer = await stub.ListDatasets(records.ListDatasetsRequest(), timeout=3)
    assert len(answer.datasets) == 1
    # gRPC rounds a deadline up to a unit of its own on the way.
    assert 0 < float(answer.datasets[0].user_visible_name) < 4


async def test_the_callers_request_id_is_kept_and_a_bad_one_replaced(stub: Any) -> None:
    for sent, kept in (("abc-1.2", True), ("x" * 200, False), ("a b", False)):
        answer = await stub.ListDatasets(
            records.ListDatasetsRequest(), metadata=(("x-request-id", sent),)
        )
        assert (answer.datasets[0].short_name == sent) is kept
        assert answer.datasets[0].short_name


async def test_request_id_and_deadline_are_passed_on_to_the_next_service(
    probe: Probe, running: RunningServer, stub: Any
) -> None:
    async with open_service_channel(f"127.0.0.1:{running.port}", message_megabytes=16) as onward:
        probe.forward_to = records.RecordReaderStub(onward)
        request = text_format.Parse(
            'component {derived_scalar_type: DERIVED_SCALAR_TYPE_MLP_POST_ACT} datasets: "x"',
            records.GetTokenRecordRequest(),
        )
        answer = await stub.GetTokenRecord(request, metadata=(("x-request-id", "one"),))
    assert answer.dataset == "one"


@pytest.mark.parametrize(
    ("dataset", "code", "reason", "field"),
    [
        ("invalid", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "dataset.dataset"),
        ("missing", "NOT_FOUND", "NOT_FOUND", ""),
        ("corrupt", "DATA_LOSS", "CORRUPT_FILE", ""),
        ("full", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", ""),
    ],
)
async def test_domain_errors_reach_the_client_with_details(
    stub: Any, dataset: str, code: str, reason: str, field: str
) -> None:
    failure = await failure_of(stub.ListLayers(layers_of(dataset)))
    assert (failure.code, failure.reason, failure.field) == (code, reason, field)
    if dataset == "missing":
        assert failure.metadata == {"datasets": "a, b"}
    if dataset == "full":
        assert failure.retry_after_seconds == 1.5


async def test_a_defect_is_internal_and_keeps_its_text_to_itself(stub: Any) -> None:
    failure = await failure_of(stub.ListLayers(layers_of("defect")))
    assert (failure.code, failure.message) == ("INTERNAL", INTERNAL_TEXT)
    assert "secret" not in str(failure)


async def test_a_broken_rule_of_the_contract_names_the_field(stub: Any) -> None:
    failure = await failure_of(stub.ListLayers(records.ListLayersRequest()))
    assert (failure.code, failure.field) == ("INVALID_ARGUMENT", "dataset")
    request = layers_of("x")
    request.page_size = -1
    failure = await failure_of(stub.ListLayers(request))
    assert (failure.code, failure.field) == ("INVALID_ARGUMENT", "page_size")


@pytest.mark.parametrize("method", ["ListLayers", "BatchGetRecords"])
@pytest.mark.parametrize("kept", [False, True])
async def test_a_request_that_can_not_be_read_is_refused_as_any_other(
    probe: Probe, method: str, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    none_kept = {"ListLayers": lambda data: None} if kept else {}
    server = await start_server([RpcService(SERVICE, probe, none_kept)], ServerOptions("records"))
    labels = {"service": SERVICE.full_name, "method": method, "code": "INVALID_ARGUMENT"}

    def counted() -> float:
        return REGISTRY.get_sample_value("neuropil_rpc_seconds_count", labels) or 0.0

    before = counted()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as raw:
            path = f"/{SERVICE.full_name}/{method}"
            unary: Any = raw.unary_unary(path)
            stream: Any = raw.unary_stream(path)
            for data in (b"\xff", b"\x0a\x02\xff\xfe", layers_of("x").SerializeToString()[:-1]):
                if method == "ListLayers":
                    failure = await failure_of(unary(data))
                else:
                    failure = await failure_of(stream(data).read())
                assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "UNREADABLE_REQUEST")
                assert f"neuropil.records.v1.{method}Request" in failure.message
    finally:
        await server.drain(0)
    assert counted() == before + 3
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


async def test_a_health_check_that_can_not_be_read_leaves_no_trace_in_the_log(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
    with pytest.raises(grpc.aio.AioRpcError):
        await check(b"\xff")
    assert not caplog.records
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_an_error_in_mid_stream_comes_after_what_was_sent(stub: Any) -> None:
    received = []
    with pytest.raises(NeuropilError, match="the second is missing"):
        async with atranslated():
            async for response in stub.BatchGetRecords(batch("x")):
                received.append(response.position)
    assert received == [0]


async def test_a_stream_is_closed_when_its_caller_goes(
    stub: Any, probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    call = stub.BatchGetRecords(batch("endless"))
    async for _ in call:
        break
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.wait_for(probe.cancelled.wait(), 5)
    await stub.ListDatasets(records.ListDatasetsRequest())
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


async def test_a_caller_that_goes_during_a_write_is_no_defect(channel: grpc.aio.Channel) -> None:
    def ended(code: str) -> float:
        labels = {"service": SERVICE.full_name, "method": "BatchGetRecords", "code": code}
        return REGISTRY.get_sample_value("neuropil_rpc_seconds_count", labels) or 0.0

    before = {code: ended(code) for code in ("CANCELLED", "INTERNAL")}
    with structlog.testing.capture_logs() as logs:
        for number in range(5):
            call = records.RecordReaderStub(channel).BatchGetRecords(batch("endless"))
            assert await call.read()
            # Time to fill what the connection takes without a reader.
            await asyncio.sleep(0.1)
            call.cancel()
            async with asyncio.timeout(10):
                while sum(map(ended, before)) <= sum(before.values()) + number:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    assert {code: ended(code) - before[code] for code in before} == {"CANCELLED": 5, "INTERNAL": 0}
    assert not [each for each in logs if each["log_level"] == "error"]


async def test_a_call_ends_at_its_deadline_and_its_work_is_cancelled(
    stub: Any, probe: Probe
) -> None:
    failure = await failure_of(stub.ListComponents(components(), timeout=0.2))
    assert failure.code == "DEADLINE_EXCEEDED"
    await asyncio.wait_for(probe.cancelled.wait(), 5)


async def test_the_default_deadline_ends_a_call_that_brings_none(probe: Probe) -> None:
    options = ServerOptions("records", limits=Limits(default_deadline_seconds=0.2))
    server = await start_server([RpcService(SERVICE, probe)], options)
    async with open_aio_channel(f"127.0.0.1:{server.port}") as opened:
        failure = await failure_of(records.RecordReaderStub(opened).ListComponents(components()))
    assert failure.code == "DEADLINE_EXCEEDED"
    assert failure.metadata == {"deadline_seconds": "0.2"}
    await server.drain(1)


async def test_a_stream_ends_at_the_default_deadline_although_its_caller_does_not_read(
    probe: Probe,
) -> None:
    options = ServerOptions("records", limits=Limits(queue=1, default_deadline_seconds=0.5))
    server = await start_server([RpcService(SERVICE, probe)], options)
    async with open_aio_channel(f"127.0.0.1:{server.port}") as opened:
        stub = records.RecordReaderStub(opened)
        call = stub.BatchGetRecords(batch("endless"))
        await call.read()
        # Until then the server is blocked: the answers that are under way fill the window.
        await asyncio.wait_for(probe.cancelled.wait(), 5)
        failure = await failure_of(asyncio.wait_for(_read_to_the_end(call), 5))
        assert failure.code == "DEADLINE_EXCEEDED"
        assert failure.metadata == {"deadline_seconds": "0.5"}
        # Its place is free again.
        await stub.ListDatasets(records.ListDatasetsRequest())
    await server.drain(1)


async def test_a_stream_that_computes_ends_at_its_deadline(probe: Probe) -> None:
    options = ServerOptions("records", limits=Limits(default_deadline_seconds=0.2))
    server = await start_server([RpcService(SERVICE, probe)], options)
    async with open_aio_channel(f"127.0.0.1:{server.port}") as opened:
        call = records.RecordReaderStub(opened).BatchGetRecords(batch("slow"))
        failure = await failure_of(asyncio.wait_for(_read_to_the_end(call), 5))
    assert failure.code == "DEADLINE_EXCEEDED"
    await asyncio.wait_for(probe.cancelled.wait(), 5)
    await server.drain(1)


async def test_work_that_fails_as_its_stream_ends_is_no_defect(
    probe: Probe, caplog: pytest.LogCaptureFixture
) -> None:
    options = ServerOptions("records", limits=Limits(default_deadline_seconds=0.2))
    server = await start_server([RpcService(SERVICE, probe)], options)
    async with open_aio_channel(f"127.0.0.1:{server.port}") as opened:
        call = records.RecordReaderStub(opened).BatchGetRecords(batch("late"))
        failure = await failure_of(asyncio.wait_for(_read_to_the_end(call), 5))
    assert failure.code == "DEADLINE_EXCEEDED"
    assert failure.metadata == {"deadline_seconds": "0.2"}
    await server.drain(1)
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []


async def _read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_load_over_the_limit_is_shed_with_retry_information(stub: Any, probe: Probe) -> None:
    waiting = [asyncio.ensure_future(stub.ListComponents(components())) for _ in range(2)]
    await asyncio.sleep(0.2)
    failure = await failure_of(stub.ListComponents(components()))
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert failure.retry_after_seconds == 1
    probe.release.set()
    assert [list((await call).component_indices) for call in waiting] == [[1], [1]]


async def test_drain_lets_running_calls_end_and_reports_not_serving(
    running: RunningServer, channel: grpc.aio.Channel, stub: Any, probe: Probe
) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    check = health_pb2.HealthCheckRequest(service=SERVICE.full_name)
    assert (await health.Check(check)).status == health_pb2.HealthCheckResponse.SERVING
    call = asyncio.ensure_future(stub.ListComponents(components()))
    await asyncio.sleep(0.1)
    drained = asyncio.ensure_future(running.drain(10))
    await asyncio.sleep(0.1)
    assert not drained.done()
    probe.release.set()
    assert list((await call).component_indices) == [1]
    await asyncio.wait_for(drained, 5)
    async with open_aio_channel(f"127.0.0.1:{running.port}") as late:
        failure = await failure_of(
            records.RecordReaderStub(late).ListDatasets(records.ListDatasetsRequest(), timeout=2)
        )
    assert failure.code in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


async def test_reflection_lists_the_service(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async for answer in stub.ServerReflectionInfo(ask()):
        names = {service.name for service in answer.list_services_response.service}
        assert {SERVICE.full_name, "grpc.health.v1.Health"} <= names
        break


async def test_a_port_in_use_is_a_configuration_error(running: RunningServer, probe: Probe) -> None:
    with pytest.raises(errors.ConfigurationError, match="in use"):
        await start_server(
            [RpcService(SERVICE, probe)], ServerOptions("records", port=running.port)
        )
