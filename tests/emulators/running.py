"""A storage emulator as a process that tests can stop, kill, hang and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import urllib3

SECONDS_TO_START = 60.0
SECONDS_TO_END = 15.0


class Emulator(ABC):
    """A server of blobs on a port of this machine, with its data in a folder.

    Port and folder stay the same however often it is ended and started again.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._http = urllib3.PoolManager(retries=False, timeout=10.0)

    @property
    def endpoint(self) -> str:
        """Where it is, as the configuration of a service names it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Variables with which a service finds it and may use it."""

    @abstractmethod
    def put(self, path: str, content: bytes) -> None:
        """Store a blob at a path that the reader understands."""

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it."""

    def variables(self) -> dict[str, str]:
        """Variables of its own environment."""
        return {}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._process is None, "it runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                env={**os.environ, **self.variables()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"it did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it so that it writes down what it still has in memory."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._end(signal.SIGKILL)

    def flush(self) -> None:
        """Write down all that was stored: a kill loses nothing of it."""
        self.stop()
        self.start()

    def suspend(self) -> None:
        """Let it hang: connections are taken and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _answers(self) -> bool:
        try:
            self._http.request("GET", self.endpoint, timeout=1.0)
        except urllib3.exceptions.HTTPError:
            return False
        return True

    def _end(self, by: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(by)
        # A stopped process takes the signal once it goes on.
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
