"""Runs the launcher as a user does, and finds every process that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

NEUROPIL = [sys.executable, "-m", "services.launcher"]
FREE_PORTS = ["--http-port", "0", "--records-port", "0", "--scalars-port", "0"]
FREE_PORTS += ["--simulation-port", "0"]
SECONDS = 120.0


class Launched:
    """A launcher with all that it started, recognised by a variable of their environment."""

    def __init__(
        self,
        arguments: list[str],
        folder: Path,
        variables: dict[str, str],
        stdout: IO[str] | int = subprocess.PIPE,
        command: Sequence[str] = NEUROPIL,
    ) -> None:
        self.mark = f"LAUNCHER_TEST={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("NEUROPIL_")}
        self.log = folder / "stderr"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                env={**environment, name: value, "TMPDIR": str(folder), **variables},
                stdout=stdout,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.url = ""
        self.addresses: dict[str, str] = {}

    def wait_until_ready(self, services: int) -> None:
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first.startswith("ready http://"), self.words()
        self.url = first.split()[1]
        for _ in range(services):
            name, address = self.process.stdout.readline().split()
            self.addresses[name] = address

    def words(self) -> list[str]:
        """What it told people, beside the logs."""
        return [line for line in self.log.read_text().splitlines() if not line.startswith("{")]

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def pids(self) -> dict[int, str]:
        """Processes that are left, with their command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                # Valkey writes its title over its environment.
                if marked or str(self.log.parent) in os.readlink(folder / "cwd"):
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = line.decode()
            except OSError:
                continue
        return found

    def assert_nothing_is_left(self) -> None:
        end = time.monotonic() + SECONDS
        while self.pids():
            assert time.monotonic() < end, self.pids()
            time.sleep(0.05)
        assert not list(self.log.parent.glob("neuropil-*"))

    def close(self) -> None:
        # A cache that is killed before its keeper is started again.
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
            self.process.poll()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


Launch = Callable[..., Launched]


@contextmanager
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Give what starts launchers; whatever they started is ended after the block."""
    launched: list[Launched] = []

    def start(
        *arguments: str,
        stdout: IO[str] | int = subprocess.PIPE,
        command: Sequence[str] = NEUROPIL,
        **variables: str,
    ) -> Launched:
        # The folder is the launcher's TMPDIR: a socket's path must not be long.
        folder = tmp_path_factory.mktemp("up")
        launched.append(Launched(list(arguments), folder, variables, stdout, command))
        return launched[-1]

    try:
        yield start
    finally:
        for one in launched:
            one.close()


def refused(launch: Launch, *arguments: str, **variables: str) -> str:
    """The one line of a launcher that starts nothing."""
    up = launch(*arguments, **variables)
    assert up.wait() == 2
    (words,) = up.words()
    assert up.log.read_text().splitlines() == [words]
    up.assert_nothing_is_left()
    prefix = "neuropil: error: "
    assert words.startswith(prefix)
    return words.removeprefix(prefix)
