"""What bulk runs keep: storage that fails, merges, crashes, damaged and newer files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from services.simulation.bulk import segments
from services.simulation.bulk.events import (
    RunResult,
    StoppedBy,
)
from services.simulation.bulk.journal import run_folder
from services.simulation.bulk.run import BulkRun, BulkRunner
from services.simulation.state.local import LocalStateStore
from shared.errors import (
    FailedPrecondition,
    NeuropilError,
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
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStateStore:
    return LocalStateStore(tmp_path / "state")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)


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
