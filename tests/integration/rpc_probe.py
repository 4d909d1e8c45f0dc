"""A servicer that shows how the server around it behaves, and calls to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, atranslated
from neuropil.records import v1 as records
from shared import errors
from shared.rpc.context import request_id, seconds_left

SERVICE = records.DESCRIPTOR.services_by_name["RecordReader"]


class Probe:
    """A servicer each of whose answers shows one behaviour of the server around it."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.forward_to: records.RecordReaderStub | None = None

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        return records.ListDatasetsResponse(
            datasets=[
                records.Dataset(short_name=request_id(), user_visible_name=str(seconds_left()))
            ]
        ).SerializeToString()

    async def ListLayers(self, request: Any, context: Any) -> Any:
        known = {
            "invalid": errors.InvalidArgument("dataset.dataset: bad", field="dataset.dataset"),
            "missing": errors.NotFound("no such record", metadata={"datasets": "a, b"}),
            "corrupt": errors.DataLoss("0.json is corrupt", metadata={"file": "0.json"}),
            "full": errors.ResourceExhausted("too much", retry_after_seconds=1.5),
            "defect": ZeroDivisionError("a secret of ours"),
        }
        raise known[request.dataset.dataset]

    async def ListComponents(self, request: Any, context: Any) -> Any:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return records.ListComponentsResponse(component_indices=[1])

    async def GetTokenRecord(self, request: Any, context: Any) -> Any:
        assert self.forward_to is not None
        answer = await self.forward_to.ListDatasets(records.ListDatasetsRequest())
        return records.GetTokenRecordResponse(dataset=answer.datasets[0].short_name)

    async def BatchGetRecords(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield records.BatchGetRecordsResponse(position=0)
        if request.datasets[0] == "endless":
            large = records.GetTokenRecordResponse(dataset="x" * 100_000)
            try:
                while True:
                    yield records.BatchGetRecordsResponse(position=1, token_record=large)
            finally:
                self.cancelled.set()
        if request.datasets[0] == "slow":
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.datasets[0] == "late":
            # Until the status is on its way.
            while not context.code():  # noqa: ASYNC110 - nothing else tells of it
                await asyncio.sleep(0)
            raise errors.DeadlineExceeded("too late by itself")
        raise errors.NotFound("the second is missing")

    def __getattr__(self, name: str) -> Any:
        async def unused(request: Any, context: Any) -> Any:
            raise errors.Unimplemented(f"{name} is not served")

        if name.startswith("_"):
            raise AttributeError(name)
        return unused


def layers_of(dataset: str) -> records.ListLayersRequest:
    """A call that fails as `dataset` says."""
    return records.ListLayersRequest(
        dataset=records.DatasetId(
            dataset=dataset, derived_scalar_type=common.DERIVED_SCALAR_TYPE_MLP_POST_ACT
        )
    )


def components() -> records.ListComponentsRequest:
    """A call that waits for `Probe.release`."""
    return records.ListComponentsRequest(dataset=layers_of("x").dataset)


def batch(dataset: str) -> records.BatchGetRecordsRequest:
    """A stream that behaves as `dataset` says."""
    return records.BatchGetRecordsRequest(
        datasets=[dataset],
        components=[
            common.ComponentId(derived_scalar_type=common.DERIVED_SCALAR_TYPE_MLP_POST_ACT)
        ],
    )


async def failure_of(call: Any) -> NeuropilError:
    """What a call fails with."""
    with pytest.raises(NeuropilError) as caught:
        async with atranslated():
            await call
    return caught.value
