"""Holding a device's worker, and what it has counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from prometheus_client import REGISTRY

from services.scalars.engine.jobs import Check
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import RunResult

CAPTURE = RawTensorId(ActivationLocationType.MLP_POST_ACT, 0, PassType.FORWARD)


class Gate:
    """A derivation that says when it has begun, and ends when told to."""

    def __init__(self) -> None:
        self.begun, self.release = threading.Event(), threading.Event()

    def derive(self, run: RunResult, check: Check) -> str:
        self.begun.set()
        assert self.release.wait(20)
        check()
        return "done"


async def begun(gate: Gate) -> None:
    """Wait until the worker is held."""
    assert await asyncio.to_thread(gate.begun.wait, 20)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the condition belongs to another thread
            await asyncio.sleep(0.001)


def sample(name: str, **labels: str) -> float:
    """A metric of derived scalars."""
    return REGISTRY.get_sample_value(f"neuropil_scalars_{name}", labels) or 0.0


def outcomes(name: str) -> float:
    """How many jobs had this outcome."""
    return sample("jobs_total", outcome=name)
