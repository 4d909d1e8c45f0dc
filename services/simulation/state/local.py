"""State in a local folder, or in one of a network file system with locks."""

from __future__ import annotations

import asyncio
import builtins
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.simulation.state.failures import failure_of
from services.simulation.state.store import Lease, LeaseHeld, checked_name
from shared.formats.encoding import write_atomically

_PAUSE_SECONDS = 0.05
_LOCK = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Lock:
    """Held by the system for as long as the process lives."""

    lost: bool = False


class LocalStateStore:
    """Files below a folder, which is made when something is first kept."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    async def get(self, name: str) -> bytes | None:
        """As `StateStore`."""
        return await asyncio.to_thread(self._get, self._path(name))

    async def put(self, name: str, data: bytes) -> None:
        """As `StateStore`."""
        await asyncio.to_thread(self._put, self._path(name), data)

    async def list(self, prefix: str) -> list[str]:
        """As `StateStore`."""
        names = await asyncio.to_thread(self._names, self._path(prefix))
        return [f"{prefix}/{name}" for name in names]

    async def delete(self, name: str) -> None:
        """As `StateStore`."""
        await asyncio.to_thread(self._delete, self._path(name))

    @asynccontextmanager
    async def lease(self, name: str, *, patience_seconds: float) -> AsyncIterator[Lease]:
        """As `StateStore`: the system's lock of a file, which ends with the process at once."""
        path = self._path(name)
        deadline = time.monotonic() + patience_seconds
        handle = await asyncio.to_thread(self._opened, path)
        try:
            while not _locked(handle):
                if time.monotonic() > deadline:
                    raise LeaseHeld
                await asyncio.sleep(_PAUSE_SECONDS)
            await asyncio.to_thread(_sweep, path.parent)
            yield _Lock()
        finally:
            os.close(handle)

    async def close(self) -> None:
        """Nothing is held between calls."""

    def _path(self, name: str) -> Path:
        return self._folder / checked_name(name)

    def _get(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise failure_of(error, "read") from error

    def _put(self, path: Path, data: bytes) -> None:
        try:
            write_atomically(path, data)
        except OSError as error:
            raise failure_of(error, "written") from error

    def _names(self, path: Path) -> builtins.list[str]:
        try:
            with os.scandir(path) as entries:
                # What a writer has not renamed yet, or never will, begins with a dot.
                return sorted(entry.name for entry in entries if not entry.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise failure_of(error, "listed") from error

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise failure_of(error, "written") from error

    def _opened(self, path: Path) -> int:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, _LOCK, 0o644)
        except OSError as error:
            raise failure_of(error, "written") from error


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # A file system without locks.
        raise failure_of(error, "locked") from error
    return True


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed left behind; whoever holds the lease is alone."""
    with suppress(OSError):
        for path in folder.rglob(".*.tmp"):
            path.unlink(missing_ok=True)
