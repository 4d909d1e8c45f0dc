"""Child processes, with real servers: together started, watched, and never left over."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.launcher.health import wait_until_serving
from services.launcher.processes import Child, ChildCommand, ChildFailed
from services.launcher.supervision import Supervisor, supervised

SERVER = """
import contextlib, sys
from shared.rpc.server import ServerOptions, serve

@contextlib.asynccontextmanager
async def nothing():
    yield []

serve(nothing, ServerOptions(sys.argv[1], end_with_parent=True))
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("serving", sys.argv[1], inner.pid, flush=True)
time.sleep(600)
"""


def child(name: str, program: str = SERVER) -> ChildCommand:
    return ChildCommand(name, [sys.executable, "-c", program, name])


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + 20
    while any(map(is_running, pids)):
        assert time.monotonic() < end, f"still running: {list(filter(is_running, pids))}"
        time.sleep(0.05)


async def test_a_server_announces_its_address_and_ends_cleanly_when_asked() -> None:
    server = await Child.start(child("one"))
    address = await server.address()
    await wait_until_serving(address)
    assert await server.stop(10)
    assert not is_running(server.pid)


async def test_a_child_is_in_a_session_of_its_own() -> None:
    server = await Child.start(child("one"))
    try:
        await server.address()
        assert os.getsid(server.pid) == server.pid != os.getsid(0)
    finally:
        await server.stop(10)


async def test_what_a_child_says_of_its_failure_is_passed_on() -> None:
    program = "import sys; print('failed 2 model.path: /x does not exist'); sys.exit(2)"
    with pytest.raises(ChildFailed) as caught:
        await (await Child.start(child("scalars", program))).address()
    assert str(caught.value) == "scalars: model.path: /x does not exist"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("import sys; sys.exit(7)", "exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9 (SIGKILL)"),
        ("print('serving'[:4])", "exit code 0"),
    ],
)
async def test_a_child_that_ends_without_a_word_is_told_of(program: str, how: str) -> None:
    with pytest.raises(ChildFailed, match="one: ended by itself with ") as caught:
        await (await Child.start(child("one", program))).address()
    assert how in str(caught.value)
    assert caught.value.exit_code == 1


async def test_a_program_that_is_missing_is_a_failure() -> None:
    with pytest.raises(ChildFailed, match="can't be started"):
        await Child.start(ChildCommand("one", ["/nowhere/at/all"]))


async def test_a_child_that_talks_much_before_it_serves_does_not_block() -> None:
    program = "print('x' * 200_000); print('serving one here:1', flush=True); input()"
    talker = await Child.start(child("one", program))
    assert await talker.address() == "here:1"
    await talker.stop(10)


async def test_a_child_that_does_not_listen_is_killed_with_all_that_it_started() -> None:
    stubborn = await Child.start(child("one", STUBBORN))
    inner = int(await stubborn.address())
    assert not await stubborn.stop(0.2)
    wait_until_gone([stubborn.pid, inner])


async def test_children_end_in_order() -> None:
    ends: list[str] = []

    async def start(supervisor: Supervisor) -> None:
        for name in ("a", "b", "c"):
            await supervisor.start(child(name), wait_until_serving)

    def note_end(name: str, pid: int) -> None:
        while is_running(pid):
            time.sleep(0.002)
        ends.append(name)

    async with supervised((("c",), ("a", "b")), start) as supervisor:
        pids = supervisor.pids
        notes = [
            asyncio.ensure_future(asyncio.to_thread(note_end, name, pid))
            for name, pid in pids.items()
        ]
    await asyncio.gather(*notes)
    assert ends[0] == "c"
    assert supervisor.unclean == []


async def test_a_start_that_fails_ends_what_was_started() -> None:
    started: list[Supervisor] = []

    async def start(supervisor: Supervisor) -> None:
        started.append(supervisor)
        await supervisor.start(child("a"), wait_until_serving)
        await supervisor.start(child("b", "print('failed 2 no'), exit(2)"))

    with pytest.raises(ChildFailed, match="b: no"):
        async with supervised((("a",), ("b",)), start):
            raise AssertionError("it can't have started")
    wait_until_gone(list(started[0].pids.values()))


async def test_a_child_that_announces_and_dies_before_it_is_healthy_is_a_failure() -> None:
    program = "print('serving a 127.0.0.1:1', flush=True); import time; time.sleep(0.3)"

    async def start(supervisor: Supervisor) -> None:
        await supervisor.start(child("a", program), wait_until_serving)

    with pytest.raises(ChildFailed, match="a: ended by itself with exit code 0"):
        async with supervised((("a",),), start):
            pass


async def test_the_end_of_one_child_is_noticed() -> None:
    async def start(supervisor: Supervisor) -> None:
        for name in ("a", "b"):
            await supervisor.start(child(name), wait_until_serving)

    async with supervised((("a",), ("b",)), start) as supervisor:
        os.kill(supervisor.pids["b"], signal.SIGKILL)
        failure = await asyncio.wait_for(supervisor.failure(), 10)
        assert failure.name == "b"
        assert "SIGKILL" in failure.message


async def test_a_second_cancellation_ends_everything_at_once() -> None:
    async def start(supervisor: Supervisor) -> None:
        await supervisor.start(child("a", STUBBORN))

    inside = asyncio.Event()
    pids: list[int] = []

    async def live() -> None:
        async with supervised((("a",),), start) as supervisor:
            pids.extend(supervisor.pids.values())
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(live())
    await inside.wait()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.2)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    wait_until_gone(pids)


def test_children_end_when_the_launcher_is_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio
from services.launcher.processes import Child, ChildCommand

async def main():
    child = await Child.start(ChildCommand("one", {child("one").arguments!r}))
    print(child.pid, await child.address(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    launcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    pid, address = launcher.stdout.readline().split()
    asyncio.run(_check(address))
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    wait_until_gone([int(pid)])


async def _check(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
