"""Writes explanations while others read them: what was acknowledged must be there from then on."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc.aio
import numpy as np

from neuropil.names import component_id
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_tensor

WRITTEN = "written"
"""Folder of the dataset that explanations are written to."""
PUT_SECONDS, READ_SECONDS = 0.25, 0.05
"""Between two writes, and between two reads: a file that grows is read all the time."""
_COMPONENT = component_id("mlp_post_act", 0, 1)

Call = tuple[float, float, str, str, str]


class Writing:
    """One writer of a folder, and what it knows to be stored."""

    def __init__(self, source: str, folder: str, staleness_seconds: float) -> None:
        """A reader may not know for `staleness_seconds` what was written."""
        self._source = source
        self._folder = folder
        self._staleness = staleness_seconds
        self._stored: list[tuple[float, str]] = []
        """When the writer learnt that an explanation is stored, ascending, and its text."""
        self._count = 0

    async def put(self, stub: Any, deadline_seconds: float) -> Call:
        """Write an explanation that was not there before."""
        text = f"explanation {self._count}"
        self._count += 1
        values = to_tensor(np.array([0.5, 1.0], np.float32))
        request = v1.PutExplanationRequest(
            component=_COMPONENT,
            explanation_dataset=self._folder,
            explanation=text,
            scored_simulation=simulation.ScoredSimulation(
                sequences=[
                    simulation.ScoredSequenceSimulation(
                        simulation=simulation.SequenceSimulation(
                            tokens=["a", "b"],
                            expected_activations=values,
                            activation_scale=simulation.ACTIVATION_SCALE_NEURON_ACTIVATIONS,
                        ),
                        true_activations=values,
                    )
                ]
            ),
        )
        began = time.monotonic()
        try:
            await stub.PutExplanation(request, timeout=deadline_seconds)
            outcome = "ok"
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
        ended = time.monotonic()
        if outcome == "ok":
            self._stored.append((ended, text))
        return began, ended, "put", self._source, outcome

    async def read(self, stub: Any, deadline_seconds: float) -> Call:
        """Read all that was written; WRONG where something acknowledged is missing."""
        request = v1.ListExplanationsRequest(component=_COMPONENT)
        request.explanation_datasets.paths.append(self._folder)
        began = time.monotonic()
        due = {text for at, text in self._stored if at <= began - self._staleness}
        try:
            reply = await stub.ListExplanations(request, timeout=deadline_seconds)
            there = {each.text for each in reply.explanations}
            known = {f"explanation {number}" for number in range(self._count)}
            failed = "".join(failure.code for failure in reply.failures)
            outcome = failed or ("ok" if due <= there <= known else "WRONG")
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
        return began, time.monotonic(), "read of writes", self._source, outcome

    async def run(
        self, stubs: list[Any], over: asyncio.Event, calls: list[Call], deadline_seconds: float
    ) -> None:
        """One writer and a reader on each stub, until it is over."""

        async def write() -> None:
            while not over.is_set():
                calls.append(await self.put(stubs[0], deadline_seconds))
                await asyncio.sleep(PUT_SECONDS)

        async def read(stub: Any) -> None:
            while not over.is_set():
                calls.append(await self.read(stub, deadline_seconds))
                await asyncio.sleep(READ_SECONDS)

        await asyncio.gather(write(), *(read(stub) for stub in stubs))
