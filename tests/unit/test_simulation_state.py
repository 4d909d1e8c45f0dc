"""Where runs and calibrations are kept: a local folder, and a blob store behind an emulator."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.simulation.state import remote
from services.simulation.state.local import LocalStateStore
from services.simulation.state.remote import RemoteStateStore
from services.simulation.state.store import LeaseHeld, StateStore, open_state
from shared.errors import ConfigurationError, FailedPrecondition, ResourceExhausted, Unavailable
from shared.settings import Storage
from tests.emulators.gcs import FakeGcs
from tests.emulators.running import free_port
from tests.load.processes import REPOSITORY


@pytest.fixture(params=["local", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    if request.param == "local":
        yield open_state(str(tmp_path / "not made yet" / "state"))
        return
    emulator: FakeGcs = request.getfixturevalue("gcs")
    bucket = f"box-{uuid.uuid4().hex[:8]}"
    emulator.create_bucket(bucket)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        patch.setattr(remote, "DEAD_AFTER_SECONDS", 0.6)
        patch.setattr(remote, "RENEWED_EVERY_SECONDS", 0.2)
        patch.setattr(remote, "_SETTLING_SECONDS", 0.1)
        yield open_state(f"gs://{bucket}/state", Storage(gcs_endpoint=emulator.endpoint))


async def test_what_is_put_is_there(store: StateStore) -> None:
    assert await store.get("a/b.json") is None
    assert await store.list("a") == []
    await store.put("a/b.json", b"first")
    await store.put("a/c", b"\0" * 300_000)
    await store.put("a/b.json", b"second")
    assert await store.get("a/b.json") == b"second"
    assert await store.get("a/c") == b"\0" * 300_000
    assert await store.list("a") == ["a/b.json", "a/c"]
    await store.delete("a/b.json")
    await store.delete("a/b.json")
    assert await store.list("a") == ["a/c"]
    await store.close()


async def test_a_lease_has_one_owner_at_a_time(store: StateStore) -> None:
    async with store.lease("runs/lease", patience_seconds=0.0) as lease:
        await asyncio.sleep(0.5)
        assert not lease.lost
        with pytest.raises(LeaseHeld):
            async with store.lease("runs/lease", patience_seconds=0.3):
                pass
        async with store.lease("runs/other", patience_seconds=0.0):
            pass
    async with store.lease("runs/lease", patience_seconds=0.0):
        pass


async def test_a_lease_is_waited_for(store: StateStore) -> None:
    held, leave = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with store.lease("runs/lease", patience_seconds=0.0):
            held.set()
            await leave.wait()

    holding = asyncio.create_task(hold())
    await held.wait()
    asyncio.get_running_loop().call_later(0.2, leave.set)
    async with store.lease("runs/lease", patience_seconds=30.0):
        assert leave.is_set()
    await holding


async def test_of_a_dead_owner_the_lease_is_taken(
    gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a blob store; a local lock ends with its process, as the next test shows."""
    gcs.create_bucket("box-dead")
    monkeypatch.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")
    monkeypatch.setattr(remote, "DEAD_AFTER_SECONDS", 0.4)
    monkeypatch.setattr(remote, "_SETTLING_SECONDS", 0.1)
    monkeypatch.setattr(remote, "RENEWED_EVERY_SECONDS", 0.1)
    store = RemoteStateStore("gs://box-dead/s", Storage(gcs_endpoint=gcs.endpoint))
    await store.put("runs/lease", b'{"owner": "somebody who was killed", "beats": 7}')
    async with store.lease("runs/lease", patience_seconds=0.0) as lease:
        # Another one that took it, as this one was not heard of for long: it notices.
        await store.put("runs/lease", b'{"owner": "another", "beats": 1}')
        for _ in range(100):
            await asyncio.sleep(0.05)
            if lease.lost:
                break
        assert lease.lost
    assert await store.get("runs/lease") == b'{"owner": "another", "beats": 1}'


def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from services.simulation.state.local import LocalStateStore\n"
        "async def hold():\n"
        "    async with LocalStateStore(sys.argv[1]).lease('run/lease', patience_seconds=0):\n"
        "        print('held', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(hold())\n"
    )
    half_written = tmp_path / "run" / "entries" / ".0001.seg.abc.tmp"
    half_written.parent.mkdir(parents=True)
    half_written.write_bytes(b"half")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    store = LocalStateStore(tmp_path)

    async def take() -> None:
        async with store.lease("run/lease", patience_seconds=0.0):
            pass

    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(LeaseHeld):
            asyncio.run(take())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    asyncio.run(take())
    assert not half_written.exists()


async def test_files_that_are_being_written_are_not_listed(tmp_path: Path) -> None:
    store = LocalStateStore(tmp_path)
    await store.put("a/b", b"x")
    (tmp_path / "a" / ".c.123.tmp").write_bytes(b"half")
    assert await store.list("a") == ["a/b"]


async def test_a_blob_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")
    store = open_state("gs://box/state", Storage(gcs_endpoint=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(Unavailable) as away:
        await store.get("a")
    assert away.value.reason == "STATE_UNAVAILABLE"
    assert away.value.retry_after_seconds
    assert "127.0.0.1" not in away.value.message


async def test_a_blob_store_that_hangs_holds_up_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")
    with socket.socket() as pit:
        pit.bind(("127.0.0.1", 0))
        # Connections are taken by the system, and nobody reads what they ask.
        pit.listen(64)
        storage = Storage(
            gcs_endpoint=f"http://127.0.0.1:{pit.getsockname()[1]}",
            read_timeout_seconds=0.5,
            timeout_seconds=0.3,
            retries=0,
        )
        store = open_state("gs://box/state", storage)
        asked = [asyncio.create_task(store.get(f"a{n}")) for n in range(40)]
        await asyncio.sleep(0.05)
        # The threads in which other calls compute are free.
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: "computed") == "computed"
        assert not any(task.done() for task in asked)
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
            assert outcome.reason == "STATE_UNAVAILABLE"
        await store.close()


async def test_a_bucket_that_is_not_there(gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")
    store = open_state("gs://no-such-box/state", Storage(gcs_endpoint=gcs.endpoint))
    assert await store.get("a") is None
    with pytest.raises(FailedPrecondition) as refused:
        await store.put("a", b"")
    assert refused.value.reason == "STATE_ACCESS_DENIED"


async def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = LocalStateStore(tmp_path / "file")
    for refused in (store.put("a/b", b""), store.get("a/b"), store.list("a")):
        with pytest.raises(FailedPrecondition) as error:
            await refused
        assert error.value.reason == "STATE_ACCESS_DENIED"
        assert "simulation_state" in error.value.message


def test_a_disk_without_room(tmp_path: Path) -> None:
    """A file may not grow over a limit, as on a disk that is full."""
    program = (
        "import asyncio, resource, signal, sys\n"
        "from services.simulation.state.local import LocalStateStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "store = LocalStateStore(sys.argv[1])\n"
        "asyncio.run(store.put('a/small', b'x' * 1000))\n"
        "try:\n"
        "    asyncio.run(store.put('a/large', b'x' * 1001))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error.reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == f"{ResourceExhausted.__name__} STATE_STORAGE_FULL"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["small"]


@pytest.mark.parametrize("name", ["", "/a", "a/", "../a", "a/../b", "a\0", "ä", "a b", ".a"])
async def test_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        await LocalStateStore(tmp_path).put(name, b"")


def test_urls_of_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="simulation_state"):
        open_state("s3://bucket/state")
