"""Bulk runs on a local state store: what is kept, gone on with, spent, refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from services.simulation.bulk.budget import Budget
from services.simulation.bulk.events import (
    ItemProgress,
    ItemResult,
    PutKind,
    RunResult,
    StoppedBy,
)
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
from tests.unit.simulation_bulk_work import (
    COST,
    Work,
    all_of,
    fingerprints,
    result_of,
    shorten_pauses,
    until,
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStateStore:
    return LocalStateStore(tmp_path / "state")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)


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
