"""Items of bulk runs that count what is done with them, and how tests run them."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from services.simulation.bulk import run as running
from services.simulation.bulk import segments
from services.simulation.bulk.events import (
    ItemProgress,
    ItemResult,
    RunEvent,
    RunProgress,
    RunResult,
    RunSummary,
)
from services.simulation.bulk.run import BulkRun, BulkRunner
from services.simulation.simulators.interface import SimulationCost
from shared.errors import (
    NeuropilError,
)

COST = SimulationCost(calls=2, prompt_tokens_computed=8, completion_tokens=2, seconds=0.5)


def fingerprints(count: int, salt: str = "") -> list[bytes]:
    return [hashlib.sha256(f"{salt}{n}".encode()).digest()[:16] for n in range(count)]


def result_of(position: int) -> bytes:
    return b"result of %d" % position


@dataclass
class Work:
    """Items that count how often they were begun and put, and fail or wait where told."""

    begun: Counter[int] = field(default_factory=Counter)
    puts: Counter[int] = field(default_factory=Counter)
    fails: dict[int, NeuropilError | Exception] = field(default_factory=dict)
    waits: dict[int, asyncio.Event] = field(default_factory=dict)
    put_fails: dict[int, list[NeuropilError]] = field(default_factory=dict)
    most_at_once: int = 0
    _now: int = 0

    async def score(self, position: int) -> AsyncGenerator[ItemProgress | ItemResult, None]:
        self.begun[position] += 1
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield ItemProgress(replace(COST, calls=1))
            if position in self.waits:
                await self.waits[position].wait()
            await asyncio.sleep(0)
            if position in self.fails:
                raise self.fails[position]
            yield ItemResult(result_of(position), COST)
        finally:
            self._now -= 1

    async def put(self, position: int, result: bytes) -> None:
        assert result == result_of(position)
        failures = self.put_fails.get(position)
        if failures:
            raise failures.pop()
        self.puts[position] += 1


async def all_of(store: Any, run: BulkRun) -> tuple[list[RunResult], RunSummary]:
    events = [event async for event in BulkRunner(store).run(run)]
    results = [event for event in events if isinstance(event, RunResult)]
    assert isinstance(events[0], RunProgress)
    assert isinstance(events[-1], RunSummary)
    return results, events[-1]


async def until(event: type[RunEvent], events: AsyncGenerator[RunEvent, None]) -> Any:
    async for each in events:
        if isinstance(each, event):
            return each
    return None


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait as long as it would in earnest."""
    monkeypatch.setattr(running, "_PUT_PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(segments, "_RETRY_SECONDS", (0.01,))
    monkeypatch.setattr("services.simulation.bulk.journal.LEASE_PATIENCE_SECONDS", 0.1)
