"""Child processes that never outlive the launcher.

A child tells how it is on standard output, one line each: ``serving NAME ADDRESS`` once it answers,
or ``failed CODE MESSAGE`` where it can't. Its standard input stays open as long as the launcher
lives; a child ends when it closes, however the launcher died. A child has a session of its own, so
that a signal to the launcher's group reaches the launcher alone, which then ends its children in
order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.launcher.failure import LauncherFailure

NOT_CONFIGURED = 2
"""Exit code of a process that can't start as configured."""


def announce_failure(code: int, message: str) -> None:
    """Tell the launcher why this process, its child, ends with `code`."""
    print("failed", code, " ".join(message.split()), flush=True)


@dataclass(frozen=True)
class ChildCommand:
    """What to run as a child."""

    name: str
    """As in the child's announcement, for example records."""
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables besides the launcher's own."""


class ChildFailed(LauncherFailure):
    """A child did not start, or ended by itself.

    `message` is what the child said of it, or how it ended; the exit code is 2 where the child
    can't start as configured, else 1.
    """

    def __init__(self, name: str, message: str, exit_code: int) -> None:
        super().__init__(f"{name}: {message}", exit_code)
        self.name = name
        self.message = message


class Child:
    """A running child process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._said: tuple[int, str] | None = None
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, command: ChildCommand, *, log: int | None = None) -> Child:
        """Start a child; `log` is the file descriptor for its logs, by default standard error.

        Raises:
            ChildFailed: if there is no such program, or no memory for it.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command.arguments,
                env={**os.environ, **command.environment},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise ChildFailed(command.name, f"can't be started: {error}", 1) from error
        return cls(command.name, process)

    @property
    def pid(self) -> int:
        """Id of the process, and of its process group."""
        return self._process.pid

    async def address(self) -> str:
        """Wait until the child announces its address.

        Raises:
            ChildFailed: if it ends before.
        """
        ended = asyncio.create_task(self.ended())
        try:
            either: list[asyncio.Future[Any]] = [self._address, ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._address.done():
                return self._address.result()
            raise ended.result()
        finally:
            ended.cancel()

    async def ended(self) -> ChildFailed:
        """Wait until the child ends, and give how that is told to people."""
        code = await self._process.wait()
        await self._reader
        if self._said is not None:
            code, message = self._said
            return ChildFailed(self.name, message, code)
        how = f"signal {-code} ({_signal_name(-code)})" if code < 0 else f"exit code {code}"
        return ChildFailed(self.name, f"ended by itself with {how}", 1)

    async def stop(self, seconds: float) -> bool:
        """Ask the child to end, and end it if it doesn't within `seconds`.

        Gives whether it ended by itself with exit code 0.
        """
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            self.kill()
        code = await self._process.wait()
        # Whatever it started itself and did not end.
        self.kill()
        await self._reader
        return code == 0

    def kill(self) -> None:
        """End the child's whole process group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        while True:
            try:
                line = await stdout.readline()
            except ValueError:
                continue  # A line of more than 64 KiB is none of the protocol.
            if not line:
                return
            first, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
            if first == "serving" and not self._address.done():
                self._address.set_result(rest.rpartition(" ")[2])
            elif first == "failed":
                code, _, message = rest.partition(" ")
                self._said = (int(code) if code.isdecimal() else 1, message)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
