"""How bulk runs end: cancelled while they write and merge, or on a store with a defect."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.simulation.bulk import segments
from services.simulation.bulk.events import ItemProgress, ItemResult, RunSummary
from services.simulation.bulk.journal import Entry, Journal
from services.simulation.bulk.run import BulkRun, BulkRunner
from services.simulation.bulk.segments import SegmentedLog
from services.simulation.finishing import finished
from services.simulation.simulators.interface import SimulationCost
from services.simulation.state.local import LocalStateStore
from services.simulation.state.store import Lease
from shared.errors import Aborted

ITEMS = 24
STOPS_AT = 20


@pytest.fixture(autouse=True)
def _early_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "FANOUT", 4)
    monkeypatch.setattr("services.simulation.bulk.journal.LEASE_PATIENCE_SECONDS", 5.0)


class SlowMerges(LocalStateStore):
    """Merges are written, and what they replace is deleted, when that is allowed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.merging = asyncio.Event()
        self.allowed = asyncio.Event()

    async def put(self, name: str, data: bytes) -> None:
        if name.endswith("-1.seg"):
            self.merging.set()
            await self.allowed.wait()
        await super().put(name, data)


async def test_who_is_cancelled_twice_holds_the_run_until_its_merge_is_written(
    tmp_path: Path,
) -> None:
    paid: Counter[int] = Counter()
    gate, waiting = asyncio.Event(), asyncio.Event()

    async def score(position: int) -> AsyncGenerator[ItemProgress | ItemResult, None]:
        if position == STOPS_AT:
            waiting.set()
            await gate.wait()
        paid[position] += 1
        yield ItemResult(b"result %d" % position, SimulationCost(calls=1))

    run = BulkRun("key", [bytes([n]) for n in range(ITEMS)], score, concurrency=1)

    async def all_of(store: LocalStateStore) -> RunSummary:
        events = [event async for event in BulkRunner(store).run(run)]
        assert isinstance(events[-1], RunSummary)
        return events[-1]

    slow = SlowMerges(tmp_path)
    first = asyncio.create_task(all_of(slow))
    await slow.merging.wait()
    await waiting.wait()
    # As a client that goes, and the deadline after it.
    for _ in range(3):
        first.cancel()
        await asyncio.sleep(0.01)
    assert not first.done()
    gate.set()
    second = asyncio.create_task(all_of(LocalStateStore(tmp_path)))
    await asyncio.sleep(0.01)
    slow.allowed.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).done == ITEMS
    third = await all_of(LocalStateStore(tmp_path))
    assert (third.done, third.reused, third.spent.calls) == (ITEMS, ITEMS, ITEMS)
    assert set(paid.values()) == {1}


def there(folder: Path, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


async def until_there(folder: Path, pattern: str, count: int) -> None:
    for _ in range(2000):
        if there(folder, pattern) == count:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{count} {pattern} never came")


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
async def test_what_is_not_whole_is_not_merged(tmp_path: Path, damage: str) -> None:
    store = LocalStateStore(tmp_path)
    log = await SegmentedLog.open(store, "log")
    for number in range(3):
        await log.append(b"record %d" % number)
    path = sorted((tmp_path / "log").iterdir())[1]
    match damage:
        case "gone":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "other":
            path.write_bytes(b"something else")
    for number in range(3, 9):
        await log.append(b"record %d" % number)
        await asyncio.sleep(0.01)
    await until_there(tmp_path / "log", "*-1.seg", 1)
    await log.close()
    again = await SegmentedLog.open(store, "log")
    records = [record async for record in again.read()]
    assert records == [b"record %d" % number for number in range(9) if number != 1]
    names = sorted(each.name for each in (tmp_path / "log").iterdir())
    # Those before the damage stay as they are; those after it are merged.
    assert re.fullmatch("0000000001-0000000001-[0-9a-f]{8}-0.seg", names[0])
    merged = [name for name in names if name.endswith("-1.seg")]
    assert merged
    assert all(name > "0000000003" for name in merged)


class Broken(LocalStateStore):
    """A store with a defect."""

    async def put(self, name: str, data: bytes) -> None:
        if name.endswith(".seg"):
            raise AttributeError("a defect")
        await super().put(name, data)


async def test_a_store_with_a_defect_ends_the_run(tmp_path: Path) -> None:
    async def score(position: int) -> AsyncGenerator[ItemProgress | ItemResult, None]:
        yield ItemResult(b"", SimulationCost(calls=1))

    run = BulkRun("key", [b"1", b"2"], score)
    for _ in range(2):
        with pytest.raises(AttributeError):
            async with asyncio.timeout(20):
                [event async for event in BulkRunner(Broken(tmp_path)).run(run)]


class OfAnOwnerNotHeardOf(LocalStateStore):
    """Its writes come late, when its lease is another's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.writing, self.arrives = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def lease(self, name: str, *, patience_seconds: float) -> AsyncIterator[Lease]:
        yield _Kept()

    async def put(self, name: str, data: bytes) -> None:
        if name.endswith(".seg"):
            self.writing.set()
            await self.arrives.wait()
        await super().put(name, data)


@dataclass
class _Kept:
    lost: bool = False


async def test_a_write_that_comes_late_replaces_nothing_of_the_next_owner(tmp_path: Path) -> None:
    fingerprints = [b"0", b"1"]

    async def keeps(store: LocalStateStore, position: int) -> None:
        async with Journal.opened(store, "key", fingerprints, "") as journal:
            entry = Entry.of(
                position, fingerprints[position], SimulationCost(calls=1), result=b"result"
            )
            await journal.keep(entry)

    late = OfAnOwnerNotHeardOf(tmp_path)
    first = asyncio.create_task(keeps(late, 0))
    await late.writing.wait()
    await keeps(LocalStateStore(tmp_path), 1)
    late.arrives.set()
    await first
    async with Journal.opened(LocalStateStore(tmp_path), "key", fingerprints, "") as journal:
        assert sorted([entry.position async for entry in journal.kept()]) == [0, 1]
        assert journal.spent.calls == 2


async def test_segments_without_an_owner_are_read_and_gone_on_with(tmp_path: Path) -> None:
    def unnamed(name: str) -> str:
        return re.sub("-[0-9a-f]{8}-", "-", name)

    store = LocalStateStore(tmp_path)
    log = await SegmentedLog.open(store, "log")
    for number in range(6):
        await log.append(b"record %d" % number)
        if number == 3:
            await until_there(tmp_path / "log", "*.seg", 1)
    await log.close()
    for path in (tmp_path / "log").iterdir():
        path.rename(path.with_name(unnamed(path.name)))
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == [
        "0000000001-0000000004-1.seg",
        "0000000005-0000000005-0.seg",
        "0000000006-0000000006-0.seg",
    ]
    # As a crash between a merge and what it replaces leaves it.
    again = tmp_path / "log" / "0000000002-0000000002-0.seg"
    again.write_bytes((tmp_path / "log" / "0000000005-0000000005-0.seg").read_bytes())
    log = await SegmentedLog.open(store, "log")
    expected = [b"record %d" % number for number in range(6)]
    assert [record async for record in log.read()] == expected
    await log.append(b"new")
    await log.close()
    log = await SegmentedLog.open(store, "log")
    assert [record async for record in log.read()] == [*expected, b"new"]


async def test_who_has_lost_the_lease_writes_nothing(tmp_path: Path) -> None:
    def check() -> None:
        raise Aborted("another's", reason="RUN_IN_PROGRESS")

    log = await SegmentedLog.open(LocalStateStore(tmp_path), "log", check)
    with pytest.raises(Aborted):
        await log.append(b"record")
    await log.close()
    assert not (tmp_path / "log").exists()


async def test_finished_tells_what_came_of_it() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("wrong")

    assert await finished(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="wrong"):
        await finished(fails())
    ended = asyncio.Event()

    async def works() -> None:
        await asyncio.sleep(0.02)
        ended.set()

    task = asyncio.create_task(finished(works()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
