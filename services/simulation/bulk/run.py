"""One bulk run: items side by side, each kept before it is told of."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from neuropil.errors import NeuropilError as ClientError
from services.simulation.bulk.budget import Budget, Spending, is_paid
from services.simulation.bulk.events import (
    ItemFailure,
    ItemProgress,
    ItemResult,
    PutKind,
    PutOutcome,
    RunEvent,
    RunProgress,
    RunResult,
    RunSummary,
    StoppedBy,
)
from services.simulation.bulk.journal import Entry, Journal
from services.simulation.finishing import finished
from services.simulation.simulators.interface import SimulationCost
from services.simulation.state.store import StateStore, not_configured
from shared.errors import NeuropilError

DEFAULT_CONCURRENCY = 4

_PASSING = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "INTERNAL", "UNKNOWN"}
)
"""Codes of failures to put that may be over a moment later."""
_PUT_PAUSES = (0.25, 0.5, 1.0)
_PROGRESS_SECONDS = 0.5
_DEFECT = "the item failed by a defect of the service; its log says more"

Score = Callable[[int], AsyncGenerator[ItemProgress | ItemResult, None]]
Put = Callable[[int, bytes], Awaitable[None]]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BulkRun:
    """What is to be done."""

    key: str
    """A later run of the same key and items goes on with this one."""
    fingerprints: Sequence[bytes]
    """One an item: the same bytes for the same request, now and after a restart."""
    score: Score
    """Does the item at a position: yields what it costs so far, and at last its result. A
    `NeuropilError`, of `shared.errors` or of the client, fails the item alone."""
    budget: Budget = field(default_factory=Budget)
    concurrency: int = DEFAULT_CONCURRENCY
    """Most items at once."""
    put: Put | None = None
    """Puts the result of an item to the record reader; doing it twice must do no harm."""
    put_target: str = ""
    """Where that puts it to; set if and only if there is a `put`."""


class BulkRunner:
    """Runs bulk runs on one state store."""

    def __init__(self, store: StateStore | None) -> None:
        self._store = store

    async def run(self, run: BulkRun) -> AsyncGenerator[RunEvent, None]:
        """The outcomes of earlier runs of the key, then new ones as they come; a summary last.

        An outcome is kept before it is yielded. Leaving the iteration stops what runs; a caller who
        does not go on with it holds the run up, after `concurrency` more items at most.

        Raises:
            FailedPrecondition: STATE_NOT_CONFIGURED, RESUME_KEY_USED or RUN_OF_NEWER_VERSION.
            Aborted: RUN_IN_PROGRESS.
            Unavailable, ResourceExhausted: outcomes can't be kept; those told of are.
        """
        if self._store is None:
            raise not_configured("scoring many explanations")
        async with Journal.opened(
            self._store, run.key, run.fingerprints, run.put_target
        ) as journal:
            state = _Run(run, journal)
            _log.info("bulk_run_begun", items=len(run.fingerprints))
            yield state.progress()
            # Closed one after the other, so that what runs has ended before the lease is given up.
            async with aclosing(state.reused()) as earlier:
                async for event in earlier:
                    yield event
            async with aclosing(state.fresh()) as fresh:
                async for event in fresh:
                    yield event
            summary = state.summary()
            _log.info(
                "bulk_run_ended",
                done=summary.done,
                failed=summary.failed,
                left=summary.left,
                reused=summary.reused,
                stopped_by=summary.stopped_by.value,
            )
            yield summary


@dataclass
class _Counts:
    done: int = 0
    failed: int = 0
    reused: int = 0
    not_stored: int = 0


@dataclass
class _Run:
    run: BulkRun
    journal: Journal
    counts: _Counts = field(default_factory=_Counts)
    stopped_by: StoppedBy = StoppedBy.NOTHING

    def __post_init__(self) -> None:
        self.spending = Spending(self.run.budget)
        self.changed = asyncio.Condition()
        self.next_position = 0
        self.told = 0.0

    async def reused(self) -> AsyncGenerator[RunEvent, None]:
        """The outcomes of earlier runs; puts what they did not get to put."""
        some: list[Entry] = []
        async with aclosing(self.journal.kept()) as kept:
            async for entry in kept:
                some.append(entry)
                if len(some) >= self.run.concurrency:
                    for event in await self._reused(some):
                        yield event
                    some = []
        for event in await self._reused(some):
            yield event
        self.spending.earlier(self.journal.spent, self.counts.reused)

    async def _reused(self, entries: list[Entry]) -> list[RunResult]:
        puts = await asyncio.gather(*(self._put(each.position, each.result) for each in entries))
        self.counts.reused += len(entries)
        return [
            self._told(entry.position, entry, reused=True, put=put)
            for entry, put in zip(entries, puts, strict=True)
        ]

    async def fresh(self) -> AsyncGenerator[RunEvent, None]:
        """Do what has no outcome yet; each outcome as soon as it is kept."""
        queue: asyncio.Queue[RunEvent | BaseException | None] = asyncio.Queue(1)

        async def work() -> None:
            try:
                while (position := await self._begun()) is not None:
                    await self._item(position, queue.put)
                await queue.put(None)
            except Exception as error:  # noqa: BLE001 - who reads the queue raises it
                await queue.put(error)

        working = min(self.run.concurrency, len(self.run.fingerprints))
        tasks = [asyncio.create_task(work()) for _ in range(working)]
        try:
            while working:
                event = await queue.get()
                if event is None:
                    working -= 1
                elif isinstance(event, BaseException):
                    raise event
                else:
                    yield event
        finally:
            for task in tasks:
                task.cancel()
            await finished(asyncio.gather(*tasks, return_exceptions=True))

    async def _begun(self) -> int | None:
        """The next item to do, which counts as running from now on; None where there is none."""
        async with self.changed:
            total = len(self.run.fingerprints)
            while True:
                while self.next_position < total and self.journal.is_done(self.next_position):
                    self.next_position += 1
                if self.next_position == total or self.stopped_by is not StoppedBy.NOTHING:
                    return None
                over = self.spending.is_over()
                if over is not StoppedBy.NOTHING:
                    self.stopped_by = over
                    return None
                if self.spending.has_room():
                    break
                # What runs may turn out cheaper than the mean.
                await self.changed.wait()
            position = self.next_position
            self.next_position += 1
            self.spending.begin(position)
            return position

    async def _item(self, position: int, tell: Callable[[RunEvent], Awaitable[None]]) -> None:
        try:
            entry = await self._scored(position, tell)
        except asyncio.CancelledError:
            # What it has cost is spent all the same.
            await self._keep(self._entry(position, self.spending.so_far(position), is_final=False))
            raise
        await self._keep(entry)
        put = await self._put(position, entry.result)
        await tell(self._told(position, entry, reused=False, put=put))

    async def _scored(self, position: int, tell: Callable[[RunEvent], Awaitable[None]]) -> Entry:
        result: ItemResult | None = None
        try:
            async with aclosing(self.run.score(position)) as steps:
                async for step in steps:
                    self.spending.progress(position, step.cost)
                    if isinstance(step, ItemResult):
                        result = step
                    elif self._is_time_to_tell():
                        await tell(self.progress())
        except (NeuropilError, ClientError) as error:
            return self._failed(position, _failure_of(error))
        except Exception:  # noqa: BLE001 - a defect of one item must not end a run of thousands
            _log.exception("bulk_item_defect", position=position)
            return self._failed(position, ItemFailure("INTERNAL", "INTERNAL", _DEFECT))
        if result is None:
            raise ValueError(f"the item at {position} ended without a result")
        return self._entry(position, result.cost, result=result.result)

    async def _keep(self, entry: Entry) -> None:
        """Keep the end of an item; a caller who goes meanwhile takes nothing with him."""
        try:
            if entry.is_final or is_paid(entry.cost):
                await finished(self.journal.keep(entry))
        finally:
            has_result = entry.result is not None
            self.spending.end(entry.position, entry.cost, has_result=has_result)
            async with self.changed:
                self.changed.notify_all()

    def _entry(
        self,
        position: int,
        cost: SimulationCost,
        *,
        result: bytes | None = None,
        failure: ItemFailure | None = None,
        is_final: bool = True,
    ) -> Entry:
        fingerprint = self.run.fingerprints[position]
        return Entry.of(
            position, fingerprint, cost, result=result, failure=failure, is_final=is_final
        )

    def _failed(self, position: int, failure: ItemFailure) -> Entry:
        """Final where trying again would be paid for, and would fail again."""
        cost = self.spending.so_far(position)
        is_final = failure.is_lasting and is_paid(cost)
        return self._entry(position, cost, failure=failure, is_final=is_final)

    async def _put(self, position: int, result: bytes | None) -> PutOutcome:
        put = self.run.put
        if put is None or result is None:
            return PutOutcome(PutKind.NOT_ASKED)
        if self.journal.is_stored(position):
            return PutOutcome(PutKind.STORED)
        for pause in (*_PUT_PAUSES, None):
            try:
                await put(position, result)
                break
            except (NeuropilError, ClientError) as error:
                if pause is None or error.code not in _PASSING:
                    return PutOutcome(PutKind.FAILED, _failure_of(error).message)
            except Exception:  # noqa: BLE001 - as above; the result itself is kept
                _log.exception("bulk_put_defect", position=position)
                return PutOutcome(PutKind.FAILED, _DEFECT)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        await self.journal.mark_stored(position)
        return PutOutcome(PutKind.STORED)

    def _told(self, position: int, entry: Entry, *, reused: bool, put: PutOutcome) -> RunResult:
        self.counts.done += entry.failure is None
        self.counts.failed += entry.failure is not None
        self.counts.not_stored += put.kind is PutKind.FAILED
        return RunResult(
            position=position,
            result=entry.result,
            failure=entry.failure,
            cost=entry.cost,
            reused=reused,
            put=put,
            spent=self.journal.spent if reused else self.spending.total,
        )

    def _is_time_to_tell(self) -> bool:
        now = time.monotonic()
        if now - self.told < _PROGRESS_SECONDS:
            return False
        self.told = now
        return True

    def progress(self) -> RunProgress:
        """How far it has come."""
        return RunProgress(
            completed=self.counts.done + self.counts.failed,
            total=len(self.run.fingerprints),
            running=self.spending.running,
            spent=self.spending.total,
        )

    def summary(self) -> RunSummary:
        """Its end."""
        counts = self.counts
        left = len(self.run.fingerprints) - counts.done - counts.failed
        return RunSummary(
            done=counts.done,
            failed=counts.failed,
            left=left,
            reused=counts.reused,
            not_stored=counts.not_stored,
            stopped_by=self.stopped_by if left else StoppedBy.NOTHING,
            spent=self.spending.total,
        )


def _failure_of(error: NeuropilError | ClientError) -> ItemFailure:
    return ItemFailure(error.code, error.reason, error.message)
