"""Runs a scenario, and says what of it is wrong."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.clients import DEADLINE_SECONDS
from tests.faults.mix import EXCUSED
from tests.faults.processes import REPOSITORY, Usage, usage
from tests.faults.scenarios import BLOB, Scenario, World

RECOVERY_SECONDS = 5.0
EXTRA_DELAY_SECONDS = 3.0
"""How much longer than three times the longest calm call one may take while Redis fails."""
OTHER_REPLICAS_SECONDS = 7.0
"""How long a replica may not know what another one wrote: 5 s, and the time to read it once."""
RSS_HEADROOM_BYTES = 256 * 2**20
CACHE_METRIC = "neuropil_records_cache_requests_total"

Call = tuple[float, float, str, str, str]
"""Began and ended (monotonic seconds), kind, dataset, outcome."""


@dataclass(frozen=True)
class Phase:
    """The calm before the fault, the fault, or the time after it.

    Rate and outcomes are of the calls that ended in it.
    """

    seconds: float
    outcomes: Counter[tuple[str, str, str]]
    """By kind, dataset and outcome."""
    worst_seconds: float
    """The longest call, from its beginning to its end. A call of which any part ran during the
    fault counts there and nowhere else: what a fault holds up may end after it."""

    @property
    def rate(self) -> float:
        """Calls a second that succeeded."""
        return sum(n for (_, _, outcome), n in self.outcomes.items() if outcome == "ok") / (
            self.seconds
        )

    @property
    def errors(self) -> Counter[str]:
        """Failed calls by code."""
        found: Counter[str] = Counter()
        for (_, _, outcome), number in self.outcomes.items():
            if outcome not in ("ok", "WRONG"):
                found[outcome] += number
        return found


@dataclass(frozen=True)
class Report:
    """What a scenario showed."""

    scenario: Scenario
    calm: Phase
    fault: Phase
    after: Phase
    recovery_seconds: float
    """From the fault's end until the last failed call, and until Redis has hits again."""
    peak: Usage
    calm_peak: Usage
    problems: list[str]

    @property
    def wrong(self) -> int:
        """Answers that differ from a healthy service's."""
        return sum(
            number
            for phase in (self.calm, self.fault, self.after)
            for (_, _, outcome), number in phase.outcomes.items()
            if outcome == "WRONG"
        )

    def row(self) -> str:
        """A row of the Markdown table."""
        total = self.calm.errors + self.fault.errors + self.after.errors
        errors = ", ".join(f"{number:,} {code}" for code, number in sorted(total.items()))
        return (
            f"| {self.scenario.title} | {self.calm.rate:,.0f} | {self.fault.rate:,.0f}"
            f" | {self.after.rate:,.0f} | {errors or 'none'}"
            f" | {self.calm.worst_seconds:.2f} | {self.fault.worst_seconds:.2f}"
            f" | {self.recovery_seconds:.2f} | {self.wrong}"
            f" | {self.peak.rss_bytes / 2**20:,.0f} |"
        )


HEADER = (
    "| fault | calm calls/s | during | after | errors | worst s calm | worst s during "
    "| recovery s | wrong answers | peak RSS MiB |\n|---|---|---|---|---|---|---|---|---|---|"
)


async def run(
    scenario: Scenario,
    world: World,
    *,
    roots: Mapping[str, str],
    seconds: float,
    clients: int,
    folder: Path,
) -> Report:
    """Load the replicas: a third of the seconds calm, a third with the fault, a third after it."""
    ports = ",".join(f"127.0.0.1:{replica.port}" for replica in world.replicas)
    output = folder / f"{scenario.name}.json"
    written = [source for source in roots if source != BLOB or not scenario.store_forgets]
    # What another replica wrote may be answered late; what this one wrote may not.
    staleness = OTHER_REPLICAS_SECONDS if len(world.replicas) > 1 else 0.0
    loading = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.clients", f"ipv4:{ports}", str(output)),
        *("--clients", str(clients), "--staleness-seconds", str(staleness)),
        *("--roots", *(f"{source}={root}" for source, root in roots.items())),
        *("--written", *written),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert loading.stdout is not None
    assert loading.stdin is not None
    try:
        if (await asyncio.wait_for(loading.stdout.readline(), 120)).strip() != b"ready":
            raise RuntimeError("the clients did not start")
        watch = _Watch(world)
        async with watch:
            began = time.monotonic()
            await asyncio.sleep(seconds / 3)
            calm_peak = watch.peak
            if scenario.redis_recovers and await _redis_hits(world) == 0:
                world.problems.append("Redis had no hits before the fault: nothing was tested")
            broken = time.monotonic()
            async with scenario.fault(world):
                await asyncio.sleep(seconds / 3)
                # What it takes to start the part again is not the service's recovery.
            healed = time.monotonic()
            hits_after = await _until_redis_hits(world) if scenario.redis_recovers else 0.0
            await asyncio.sleep(max(0.0, seconds / 3 - hits_after))
            over = time.monotonic()
        loading.stdin.close()
        if await asyncio.wait_for(loading.wait(), 60) != 0:
            raise RuntimeError("the clients failed")
    finally:
        if loading.returncode is None:
            loading.kill()
            await loading.wait()
    calls: list[Call] = [tuple(call) for call in json.loads(output.read_text())]
    failed_at = [end for _, end, _, _, outcome in calls if outcome != "ok" and end > healed]
    report = Report(
        scenario,
        _phase(calls, began, broken, [call for call in calls if call[1] < broken]),
        _phase(
            calls,
            broken,
            healed,
            [call for call in calls if call[0] < healed and call[1] >= broken],
        ),
        _phase(calls, healed, over, [call for call in calls if call[0] >= healed]),
        max([hits_after, *(end - healed for end in failed_at)]),
        watch.peak,
        calm_peak,
        world.problems,
    )
    world.problems += _problems(report, world)
    return report


def _phase(calls: Sequence[Call], start: float, end: float, of: Sequence[Call]) -> Phase:
    """A stretch from `start` to `end`; its longest call is one `of` these."""
    return Phase(
        end - start,
        Counter(
            (kind, source, outcome)
            for _, ended, kind, source, outcome in calls
            if start <= ended < end
        ),
        max((ended - began for began, ended, *_ in of), default=0.0),
    )


def _problems(report: Report, world: World) -> list[str]:
    """What contradicts the guarantees of docs/reliability.md."""
    scenario, found = report.scenario, []
    if report.wrong:
        found.append(f"{report.wrong} wrong answers")
    for name, phase in (("calm", report.calm), ("fault", report.fault), ("after", report.after)):
        for (kind, source, outcome), number in phase.outcomes.items():
            if outcome in ("ok", "WRONG"):
                continue
            excused = source in scenario.may_fail and name != "calm"
            # An answer of which a part has arrived can't be asked for again unnoticed.
            cut_off = scenario.replica_dies and kind == "batch"
            if outcome not in EXCUSED or not (excused or cut_off):
                found.append(f"{number} calls ({kind}, {source}) failed with {outcome}: {name}")
    for name, phase in (("fault", report.fault), ("after", report.after)):
        if phase.rate == 0:
            found.append(f"no call succeeded: {name}")
        if phase.worst_seconds > DEADLINE_SECONDS + 2:
            found.append(f"a call took {phase.worst_seconds:.1f} s, over its deadline: {name}")
    # Without Redis the data is still there: nobody may wait for what does not answer.
    delayed = report.fault.worst_seconds - 3 * report.calm.worst_seconds
    if scenario.redis_recovers and delayed > EXTRA_DELAY_SECONDS:
        found.append(f"a call took {report.fault.worst_seconds:.1f} s while Redis failed")
    if report.recovery_seconds > RECOVERY_SECONDS:
        found.append(f"recovery took {report.recovery_seconds:.1f} s")
    if report.peak.rss_bytes > report.calm_peak.rss_bytes + RSS_HEADROOM_BYTES:
        found.append(f"memory grew to {report.peak.rss_bytes / 2**20:.0f} MiB")
    for replica in world.replicas:
        if replica.process is None or replica.process.poll() is not None:
            found.append("a replica is dead")
        found += [f"unexpected in the log: {line}" for line in replica.unexpected_log_lines()[:3]]
    return found


async def _redis_hits(world: World) -> float:
    hits = [
        asyncio.to_thread(replica.metric, CACHE_METRIC, tier="redis", outcome="hit")
        for replica in world.replicas
    ]
    return sum(await asyncio.gather(*hits))


async def _until_redis_hits(world: World) -> float:
    """Seconds until a reply comes from Redis again; many where none comes."""
    began = time.monotonic()
    before = await _redis_hits(world)
    while time.monotonic() - began < 4 * RECOVERY_SECONDS:
        if await _redis_hits(world) > before:
            break
        await asyncio.sleep(0.05)
    return time.monotonic() - began


class _Watch:
    """Looks at what the replicas hold, until left."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._task: asyncio.Task[None] | None = None
        self.peak = Usage(0, 0, 0)

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._look())

    async def __aexit__(self, *raised: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            for replica in self._world.replicas:
                try:
                    now = usage(replica.pid)
                except OSError:
                    continue
                self.peak = Usage(
                    max(self.peak.rss_bytes, now.rss_bytes),
                    max(self.peak.num_files, now.num_files),
                    max(self.peak.num_threads, now.num_threads),
                )
            await asyncio.sleep(0.2)
