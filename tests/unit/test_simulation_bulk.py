"""Bulk runs on a local state store: what is kept, gone on with, spent, refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.simulation.bulk import run as running
from services.simulation.bulk import segments
from services.simulation.bulk.budget import Budget
from services.simulation.bulk.events import (
    ItemProgress,
    ItemResult,
    PutKind,
    RunEvent,
    RunProgress,
    RunResult,
    RunSummary,
    StoppedBy,
)
from services.simulation.bulk.journal import run_folder
from services.simulation.bulk.run import BulkRun, BulkRunner
from services.simulation.simulators.interface import SimulationCost
from services.simulation.state.local import LocalStateStore
from shared.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NeuropilError,
    NotFound,
    ResourceExhausted,
    Unavailable,
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


@pytest.fixture
def store(tmp_path: Path) -> LocalStateStore:
    return LocalStateStore(tmp_path / "state")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_PUT_PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(segments, "_RETRY_SECONDS", (0.01,))
    monkeypatch.setattr("services.simulation.bulk.journal.LEASE_PATIENCE_SECONDS", 0.1)


async def test_every_item_is_done_once_side_by_side_and_kept(store: LocalStateStore) -> None:
    work = Work()
    run = BulkRun("a key / ü", fingerprints(100), work.score, concurrency=4)
    results, summary = await all_of(store, run)
    assert sorted(each.position for each in results) == list(range(100))
    assert all(each.result == result_of(each.position) for each in results)
    assert all(each.put.kind is PutKind.NOT_ASKED and not each.reused for each in results)
    assert 2 <= work.most_at_once <= 4
    assert (summary.done, summary.failed, summary.left, summary.reused) == (100, 0, 0, 0)
    assert summary.stopped_by is StoppedBy.NOTHING
    assert summary.spent.calls == 200
    assert results[-1].spent == summary.spent

    again, reused = await all_of(store, run)
    assert {each.position: each.result for each in again} == {
        each.position: each.result for each in results
    }
    assert all(each.reused and each.cost == COST for each in again)
    assert (reused.done, reused.reused, reused.spent) == (100, 100, summary.spent)
    assert work.begun == Counter(range(100))


async def test_who_leaves_stops_the_run_and_loses_nothing_that_was_told(
    store: LocalStateStore,
) -> None:
    work = Work(waits={n: asyncio.Event() for n in range(10, 20)})
    run = BulkRun("key", fingerprints(20), work.score, concurrency=3)
    told = set()
    async with aclosing(BulkRunner(store).run(run)) as events:
        async for event in events:
            if isinstance(event, RunResult):
                told.add(event.position)
            if len(told) == 10:
                break
    assert work._now == 0
    work.waits.clear()
    results, summary = await all_of(store, run)
    assert len(results) == 20
    assert told <= {each.position for each in results if each.reused}
    repeated = {position for position, times in work.begun.items() if times > 1}
    assert len(repeated) <= 3
    # What the items cost that were given up is spent: one call each, as their progress said.
    assert summary.spent.calls == 40 + len(repeated)


async def test_a_slow_reader_holds_the_run_up(store: LocalStateStore) -> None:
    work = Work()
    run = BulkRun("key", fingerprints(1000), work.score, concurrency=2)
    async with aclosing(BulkRunner(store).run(run)) as events:
        await until(RunResult, events)
        for _ in range(200):
            await asyncio.sleep(0.001)
        assert len(work.begun) <= 6


async def test_failures_do_not_stop_the_run(store: LocalStateStore) -> None:
    work = Work(
        fails={
            1: FailedPrecondition("too few tokens", reason="COVERAGE_TOO_LOW"),
            2: Unavailable("not now"),
            3: RuntimeError("a secret"),
        }
    )
    run = BulkRun("key", fingerprints(5), work.score)
    results, summary = await all_of(store, run)
    failures = {each.position: each.failure for each in results if each.failure}
    assert (summary.done, summary.failed, summary.left) == (2, 3, 0)
    assert failures[1].reason == "COVERAGE_TOO_LOW"
    assert failures[3].code == "INTERNAL"
    assert "a secret" not in failures[3].message

    work.fails.clear()
    results, summary = await all_of(store, run)
    # What was paid for and would fail again is not tried again.
    assert [each.position for each in results if each.failure] == [1]
    assert work.begun == Counter({0: 1, 1: 1, 2: 2, 3: 2, 4: 1})
    assert (summary.done, summary.failed, summary.reused) == (4, 1, 3)
    assert summary.spent.calls == 2 * 2 + 3 * 1 + 2 * 2


@pytest.mark.parametrize(
    "failure",
    [
        ResourceExhausted("used up", reason="LANGUAGE_MODEL_QUOTA"),
        FailedPrecondition("no such key", reason="LANGUAGE_MODEL_KEY_REFUSED"),
        FailedPrecondition("no such model", reason="LANGUAGE_MODEL_SERVER_REFUSES"),
        ResourceExhausted("no more", reason=""),
    ],
)
async def test_what_may_be_mended_is_tried_again_though_it_was_paid_for(
    store: LocalStateStore, failure: NeuropilError
) -> None:
    work = Work(fails={0: failure})
    run = BulkRun("key", fingerprints(2), work.score)
    assert (await all_of(store, run))[1].failed == 1
    work.fails.clear()
    results, summary = await all_of(store, run)
    assert (summary.done, summary.failed, summary.reused) == (2, 0, 1)
    assert {each.position for each in results if not each.reused} == {0}
    # What the failed attempt cost stays in the account.
    assert summary.spent.calls == 1 + 2 + 2


@pytest.mark.parametrize(
    "failure",
    [
        InvalidArgument("all NaN", reason="NON_FINITE_NUMBER"),
        ResourceExhausted("too long", reason="PROMPT_TOO_LONG"),
        ResourceExhausted("too large", reason="RESULT_TOO_LARGE"),
    ],
)
async def test_what_must_fail_again_is_not_paid_for_again(
    store: LocalStateStore, failure: NeuropilError
) -> None:
    work = Work(fails={0: failure})
    run = BulkRun("key", fingerprints(1), work.score)
    for _ in range(2):
        results, summary = await all_of(store, run)
        assert summary.failed == 1
        assert results[0].failure is not None
        assert results[0].failure.reason == failure.reason
    assert work.begun == Counter({0: 1})


async def test_a_failure_that_cost_nothing_is_tried_again(store: LocalStateStore) -> None:
    there = False

    async def score(position: int) -> AsyncGenerator[ItemProgress | ItemResult, None]:
        if not there:
            raise NotFound("no record", reason="RECORD_NOT_FOUND")
        yield ItemResult(b"", COST)

    run = BulkRun("key", fingerprints(1), score)
    assert (await all_of(store, run))[1].failed == 1
    there = True
    assert (await all_of(store, run))[1].done == 1


@pytest.mark.parametrize(
    ("budget", "stopped_by"),
    [
        (Budget(max_tokens=105), StoppedBy.TOKENS),
        (Budget(max_calls=21), StoppedBy.CALLS),
        (Budget(max_tokens=105, max_calls=21), StoppedBy.TOKENS),
    ],
)
@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_budget_stops_cleanly_over_all_runs(
    store: LocalStateStore, budget: Budget, stopped_by: StoppedBy, concurrency: int
) -> None:
    work = Work()
    run = BulkRun("key", fingerprints(50), work.score, budget, concurrency)
    results, summary = await all_of(store, run)
    assert summary.stopped_by is stopped_by
    # An item costs 10 tokens and 2 calls: 11 of them reach either limit.
    assert summary.done == 11 == len(results)
    assert summary.left == 39
    _, again = await all_of(store, run)
    assert (again.done, again.reused, again.stopped_by) == (11, 11, stopped_by)
    more = replace(run, budget=Budget(max_tokens=205))
    _, third = await all_of(store, more)
    assert (third.done, third.reused, third.stopped_by) == (21, 11, StoppedBy.TOKENS)
    _, last = await all_of(store, replace(run, budget=Budget()))
    assert (last.done, last.stopped_by) == (50, StoppedBy.NOTHING)
    assert work.begun == Counter(range(50))


async def test_a_budget_counts_what_runs_as_far_as_it_tells(store: LocalStateStore) -> None:
    gate = asyncio.Event()

    async def score(position: int) -> AsyncGenerator[ItemProgress | ItemResult, None]:
        yield ItemProgress(SimulationCost(calls=100))
        gate.set()
        yield ItemResult(b"", SimulationCost(calls=100))

    run = BulkRun("key", fingerprints(9), score, Budget(max_calls=100), concurrency=1)
    results, summary = await all_of(store, run)
    assert len(results) == 1
    assert summary.spent.calls == 100


@pytest.mark.parametrize("free", [0, 3])
async def test_a_budget_holds_for_the_first_items_too(store: LocalStateStore, free: int) -> None:
    cost = SimulationCost(calls=10)

    async def score(position: int) -> AsyncGenerator[ItemProgress | ItemResult, None]:
        await asyncio.sleep(0)
        if position < free:
            raise NotFound("no record", reason="RECORD_NOT_FOUND")
        yield ItemProgress(replace(cost, calls=1))
        await asyncio.sleep(0.01)
        yield ItemResult(b"", cost)

    run = BulkRun("key", fingerprints(100), score, Budget(max_calls=10), concurrency=64)
    _, summary = await all_of(store, run)
    assert (summary.done, summary.failed, summary.spent.calls) == (1, free, 10)
    assert summary.stopped_by is StoppedBy.CALLS
    _, summary = await all_of(store, replace(run, budget=Budget(max_calls=100)))
    assert summary.spent.calls == 100


@pytest.mark.parametrize("budget", [Budget(max_tokens=40), Budget(max_calls=8)])
async def test_what_runs_counts_as_the_mean_of_those_before(
    store: LocalStateStore, budget: Budget
) -> None:
    async def score(position: int) -> AsyncGenerator[ItemProgress | ItemResult, None]:
        await asyncio.sleep(0.01)
        # Nothing is known of its cost before.
        yield ItemResult(b"", COST)

    run = BulkRun("key", fingerprints(50), score, budget, concurrency=16)
    _, summary = await all_of(store, run)
    assert summary.done == 4


async def test_items_that_cost_nothing_run_side_by_side_under_a_budget(
    store: LocalStateStore,
) -> None:
    now = most = 0

    async def score(position: int) -> AsyncGenerator[ItemProgress | ItemResult, None]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        yield ItemResult(b"", SimulationCost())

    run = BulkRun("key", fingerprints(20), score, Budget(max_calls=10), concurrency=4)
    assert (await all_of(store, run))[1].done == 20
    assert most > 1


async def test_results_are_put_after_they_are_kept_and_once(store: LocalStateStore) -> None:
    passing = [Unavailable("a moment"), Unavailable("a moment")]
    lasting = [FailedPrecondition("not writable") for _ in range(9)]
    work = Work(put_fails={1: passing, 2: lasting})
    run = BulkRun("key", fingerprints(4), work.score, put=work.put, put_target="there")
    results, summary = await all_of(store, run)
    outcomes = {each.position: each.put for each in results}
    assert outcomes[2].kind is PutKind.FAILED
    assert outcomes[2].why == "not writable"
    assert [outcomes[n].kind for n in (0, 1, 3)] == [PutKind.STORED] * 3
    assert summary.not_stored == 1
    assert summary.done == 4

    lasting.clear()
    results, summary = await all_of(store, run)
    assert all(each.put.kind is PutKind.STORED for each in results)
    assert work.puts == Counter(range(4))
    assert work.begun == Counter(range(4))

    # To another place all of them are put, and none is done again.
    await all_of(store, replace(run, put_target="elsewhere"))
    assert work.puts == Counter(dict.fromkeys(range(4), 2))
    assert work.begun == Counter(range(4))


async def test_a_run_that_ends_between_keeping_and_putting(store: LocalStateStore) -> None:
    work = Work()
    entered = asyncio.Event()

    async def hanging(position: int, result: bytes) -> None:
        entered.set()
        await asyncio.Event().wait()

    run = BulkRun("key", fingerprints(1), work.score, put=hanging, put_target="there")
    task = asyncio.create_task(all_of(store, run))
    await entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    results, _ = await all_of(store, replace(run, put=work.put))
    assert [(each.reused, each.put.kind) for each in results] == [(True, PutKind.STORED)]
    assert work.begun == Counter({0: 1})
    assert work.puts == Counter({0: 1})


async def test_the_same_key_at_the_same_time_is_refused(store: LocalStateStore) -> None:
    work = Work(waits={0: asyncio.Event()})
    run = BulkRun("key", fingerprints(2), work.score)
    async with aclosing(BulkRunner(store).run(run)) as events:
        await until(RunResult, events)
        with pytest.raises(Aborted) as refused:
            await all_of(store, run)
        assert refused.value.reason == "RUN_IN_PROGRESS"
        assert refused.value.retry_after_seconds
        # Another key is nobody's business.
        results, _ = await all_of(store, BulkRun("other", fingerprints(2), Work().score))
        assert len(results) == 2
    work.waits.clear()
    assert (await all_of(store, run))[1].done == 2


@pytest.mark.parametrize(
    "others", [fingerprints(3, "x"), fingerprints(2), fingerprints(4), fingerprints(3)[::-1]]
)
async def test_other_requests_under_the_key_are_refused(
    store: LocalStateStore, others: list[bytes]
) -> None:
    work = Work()
    await all_of(store, BulkRun("key", fingerprints(3), work.score))
    with pytest.raises(FailedPrecondition) as refused:
        await all_of(store, BulkRun("key", others, work.score))
    assert refused.value.reason == "RESUME_KEY_USED"
    assert refused.value.field == "resume_key"
    assert refused.value.metadata == {"items": "3"}
    assert len(work.begun) == 3


async def test_without_a_state_store() -> None:
    with pytest.raises(FailedPrecondition) as refused:
        await all_of(None, BulkRun("key", fingerprints(1), Work().score))
    assert refused.value.reason == "STATE_NOT_CONFIGURED"
    assert "simulation_state" in refused.value.message


class Failing(LocalStateStore):
    """A store whose writes fail from some moment on."""

    error: NeuropilError | None = None

    async def put(self, name: str, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        await super().put(name, data)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("down", reason="STATE_UNAVAILABLE"),
        ResourceExhausted("full", reason="STATE_STORAGE_FULL"),
    ],
)
async def test_storage_that_fails_in_the_middle_ends_the_run_and_loses_nothing_told(
    tmp_path: Path, error: NeuropilError
) -> None:
    work, store, told = Work(), Failing(tmp_path), set()
    run = BulkRun("key", fingerprints(40), work.score, concurrency=2)
    with pytest.raises(type(error)):
        async with aclosing(BulkRunner(store).run(run)) as events:
            async for event in events:
                if isinstance(event, RunResult):
                    told.add(event.position)
                if len(told) == 10:
                    store.error = error
    store.error = None
    results, summary = await all_of(store, run)
    assert summary.done == 40
    assert told <= {each.position for each in results if each.reused}
    assert sum(work.begun.values()) - 40 <= 4


async def test_segments_are_merged_and_read_again(
    store: LocalStateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "FANOUT", 4)
    work = Work()
    run = BulkRun("key", fingerprints(300), work.score, concurrency=1)
    await all_of(store, run)
    folder = tmp_path / "state" / run_folder("key") / "entries"
    # 300 without merging; how far it is behind at the end depends on how busy the machine is.
    assert len(list(folder.iterdir())) < 100
    results, summary = await all_of(store, run)
    assert [each.position for each in results] == list(range(300))
    assert (summary.reused, summary.left) == (300, 0)


async def test_a_crash_in_the_middle_of_a_merge(store: LocalStateStore, tmp_path: Path) -> None:
    work = Work()
    run = BulkRun("key", fingerprints(40), work.score, concurrency=1)
    folder = tmp_path / "state" / run_folder("key") / "entries"
    replaced = {}
    async with aclosing(BulkRunner(store).run(run)) as events:
        async for event in events:
            if isinstance(event, RunResult) and event.position < 31:
                replaced |= {path.name: path.read_bytes() for path in folder.glob("*-0.seg")}
    assert len(replaced) >= 31
    # What was merged is there again, as when the process dies before it deletes it.
    for name, content in replaced.items():
        (folder / name).write_bytes(content)
    # And a file that a killed writer has not renamed.
    (folder / ".half-written.seg.tmp").write_bytes(b"NPLOG\x01half")
    _, summary = await all_of(store, run)
    assert (summary.reused, summary.left) == (40, 0)
    assert summary.spent.calls == 80
    assert work.begun == Counter(range(40))
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "gone"])
async def test_damaged_segments_are_done_again(
    store: LocalStateStore, tmp_path: Path, damage: str
) -> None:
    work = Work()
    run = BulkRun("key", fingerprints(8), work.score, concurrency=1)
    await all_of(store, run)
    folder = tmp_path / "state" / run_folder("key") / "entries"
    path = sorted(folder.iterdir())[2]
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-3])
        case "flipped":
            path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        case "empty":
            path.write_bytes(b"")
        case "other":
            path.write_bytes(b"something else")
        case "gone":
            path.unlink()
    results, summary = await all_of(store, run)
    assert (summary.done, summary.reused) == (8, 7)
    assert {each.position: each.result for each in results} == {n: result_of(n) for n in range(8)}
    assert sum(work.begun.values()) == 9


async def test_a_damaged_header_is_written_again(store: LocalStateStore, tmp_path: Path) -> None:
    work = Work()
    run = BulkRun("key", fingerprints(3), work.score)
    await all_of(store, run)
    (tmp_path / "state" / run_folder("key") / "run.json").write_bytes(b"{half")
    # Without the header, the entries still say whose they are.
    other = BulkRun("key", fingerprints(3, "x"), work.score)
    _, summary = await all_of(store, other)
    assert (summary.reused, summary.done) == (0, 3)


def _newer_header(folder: Path) -> None:
    path = folder / "run.json"
    header = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**header, "format": 2, "more": True}))


def _newer_segment(folder: Path) -> None:
    path = next((folder / "entries").iterdir())
    content = bytearray(path.read_bytes())
    content[5] = 2
    path.write_bytes(content)


@pytest.mark.parametrize("change", [_newer_header, _newer_segment])
async def test_runs_of_a_newer_release_are_refused(
    store: LocalStateStore, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    work = Work()
    run = BulkRun("key", fingerprints(3), work.score)
    await all_of(store, run)
    change(tmp_path / "state" / run_folder("key"))
    with pytest.raises(FailedPrecondition) as refused:
        await all_of(store, run)
    assert refused.value.reason == "RUN_OF_NEWER_VERSION"
    assert sum(work.begun.values()) == 3


async def test_entries_with_more_or_fewer_fields_are_read(store: LocalStateStore) -> None:
    marks = fingerprints(3)
    log = await segments.SegmentedLog.open(store, f"{run_folder('key')}/entries")
    for entry in (
        {"position": 0, "fingerprint": marks[0], "result": b"old"},
        {"position": 1, "fingerprint": marks[1], "result": b"new", "calls": 3, "more": [1]},
        {"position": 2, "fingerprint": marks[0], "result": b"another's"},
        {"position": 7, "fingerprint": marks[0], "result": b"out of range"},
        {"position": "x"},
    ):
        await log.append(msgspec.msgpack.encode(entry))
    await log.append(b"\xc1 no msgpack")
    await log.close()
    work = Work()
    results, summary = await all_of(store, BulkRun("key", marks, work.score))
    assert {each.position: each.result for each in results} == {
        0: b"old",
        1: b"new",
        2: result_of(2),
    }
    assert work.begun == Counter({2: 1})
    assert summary.spent.calls == 3 + COST.calls


async def test_marks_that_cant_be_read_are_made_again(
    store: LocalStateStore, tmp_path: Path
) -> None:
    work = Work()
    run = BulkRun("key", fingerprints(2), work.score, put=work.put, put_target="there")
    await all_of(store, run)
    (folder,) = (tmp_path / "state" / run_folder("key")).glob("puts-*")
    log = await segments.SegmentedLog.open(store, f"{run_folder('key')}/{folder.name}")
    for mark in (b"\xc1", msgspec.msgpack.encode("x"), msgspec.msgpack.encode(7)):
        await log.append(mark)
    await log.close()
    _, summary = await all_of(store, run)
    assert (summary.done, summary.not_stored) == (2, 0)
    assert work.puts == Counter(range(2))


async def test_nothing_to_do(store: LocalStateStore) -> None:
    results, summary = await all_of(store, BulkRun("key", [], Work().score))
    assert results == []
    assert (summary.done, summary.left, summary.stopped_by) == (0, 0, StoppedBy.NOTHING)


async def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition) as refused:
        await all_of(LocalStateStore(tmp_path / "file"), BulkRun("k", [b"x"], Work().score))
    assert refused.value.reason == "STATE_ACCESS_DENIED"


async def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, store: LocalStateStore) -> None:
    def full(path: Path, data: bytes) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(data)

    monkeypatch.setattr("services.simulation.state.local.write_atomically", full)
    with pytest.raises(ResourceExhausted) as refused:
        await all_of(store, BulkRun("k", [b"x"], Work().score))
    assert refused.value.reason == "STATE_STORAGE_FULL"
