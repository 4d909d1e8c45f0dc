"""Calls in a closed loop: each of some workers sends its next call when its last is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from tests.load.processes import cpu_seconds

Call = Callable[[int], Awaitable[object]]
"""Makes the call of a given number."""


@dataclass(frozen=True)
class Measured:
    """What one run of a closed loop gave."""

    calls: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_call: float
    """Processor time of the server, not of the client."""

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds

    def row(self, what: str, floor: Measured | None = None) -> str:
        """A row of a Markdown table; the ratio is of processor time, which load moves least."""
        measurable = floor is not None and floor.cpu_us_per_call > 0
        ratio = (
            f"{self.cpu_us_per_call / floor.cpu_us_per_call:.2f}" if floor and measurable else ""
        )
        return (
            f"| {what} | {self.rate:,.0f} | {self.p50_ms:.2f} | {self.p99_ms:.2f} "
            f"| {self.cpu_us_per_call:,.0f} | {ratio} |"
        )


HEADER = (
    "| what | calls/s | p50 ms | p99 ms | server CPU us/call | CPU against the floor |\n"
    "|---|---|---|---|---|---|"
)


async def closed_loop(call: Call, pid: int, *, calls: int, workers: int) -> Measured:
    """Make `calls` calls, numbered from 0, with `workers` of them at once."""
    numbers = iter(range(calls))
    times: list[float] = []

    async def work() -> None:
        for number in numbers:
            started = time.perf_counter()
            await call(number)
            times.append(time.perf_counter() - started)

    cpu, started = cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    seconds = time.perf_counter() - started
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return Measured(calls, seconds, p50, p99, (cpu_seconds(pid) - cpu) / calls * 1e6)
