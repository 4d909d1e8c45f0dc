"""Files of local folders: read, listed and replaced."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import structlog

from services.records.storage.failures import (
    failure,
    not_writable,
    outside,
    refused,
    too_large,
    write_conflict,
)
from services.records.storage.folders import Folder, is_within
from services.records.storage.names import Entry
from shared.formats.decoding import corrupt
from shared.formats.encoding import write_atomically

# A name that is too long can be no file's.
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
# Without O_NONBLOCK opening a pipe would wait for its writer.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
# For a handle that says where a file is without opening it.
_FIND: int | None = os.O_PATH | os.O_CLOEXEC if hasattr(os, "O_PATH") else None
_LONGEST_PAUSE_SECONDS = 0.02

LOCK_FILE = ".lock"
"""What writers of a folder lock. A network file system would lock the folder itself on one machine
only, and a file that is not open for writing not at all."""

_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
HANDLES = "/proc/self/fd"
"""Where the system tells what a handle was opened at."""

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


def read(folder: Folder, relative: str, max_bytes: int) -> bytes | None:
    """The content of a file; None where there is none.

    Raises DataLoss for what is no file, ResourceExhausted for one of more than `max_bytes`,
    InvalidArgument for a link out of the folder's root, and what `failures.failure` makes of the
    rest.
    """
    name = folder.file_name(relative)
    handle = _opened_as_found(folder, relative)
    if handle is None:
        handle = _opened(folder, relative, name)
    if handle is None:
        return None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise corrupt(name, "is no file")
        if status.st_size > max_bytes:
            raise too_large(name, status.st_size, max_bytes)
        content = _whole(handle, status.st_size, max_bytes)
    except OSError as error:
        raise failure(name, error) from error
    finally:
        os.close(handle)
    if len(content) > max_bytes:
        raise too_large(name, len(content), max_bytes)
    return content


def listed(
    folder: Folder,
    relative: str,
    collect: Callable[[Iterator[Entry]], _Result],
    *,
    states: bool = False,
) -> _Result | None:
    """What `collect` makes of the entries at `relative`, None where there is no such folder."""
    try:
        with os.scandir(real_path(folder, relative)) as entries:
            return collect(_entries(entries, states))
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise failure(folder.file_name(relative), error, "listed") from error


def update(
    folder: Folder,
    relative: str,
    change: Callable[[bytes | None], bytes],
    *,
    seconds: float,
    max_bytes: int,
) -> None:
    """Replace a file by what `change` makes of its content, None where there is none.

    One writer at a time, of all processes, changes the files of a folder; Unavailable where others
    do for all of `seconds`. A crash leaves the file as it was or as it shall be. FailedPrecondition
    where it can't be written.
    """
    # Checked before any folder is made, and resolved: links inside may lead elsewhere.
    path = Path(real_path(folder, relative))
    try:
        _make(path.parent)
        with _locked(path.parent, time.monotonic() + seconds, folder, relative):
            write_atomically(path, change(read(folder, relative, max_bytes)), alone=True)
    except OSError as error:
        if refused(error):
            raise failure(folder.file_name(relative), error, "written") from error
        raise not_writable(folder.name, str(error.strerror)) from error


def real_path(folder: Folder, relative: str) -> str:
    """The real path of a file; InvalidArgument where it is not within the folder's root."""
    try:
        path = os.path.realpath(os.path.join(folder.path, relative))
        if _is_in_root(path, folder):
            return path
    except ValueError:
        # A name that no file can have, such as one with a NUL.
        pass
    raise outside(folder.file_name(relative))


def _opened_as_found(folder: Folder, relative: str) -> int | None:
    """A file of the folder, opened; None where that takes a closer look, or none is to be opened.

    The system follows the links, and what it found is what is opened: nothing can be swapped in
    between. That is also faster than to follow them here.
    """
    if _FIND is None:
        return None
    try:
        found = os.open(os.path.join(folder.path, relative), _FIND)
    except (OSError, ValueError):
        return None
    try:
        there = f"{HANDLES}/{found}"
        # To open a device or a pipe may already do something.
        if stat.S_ISREG(os.fstat(found).st_mode) and _is_in_root(os.readlink(there), folder):
            return os.open(there, _READ)
    except OSError:
        pass
    finally:
        os.close(found)
    return None


def _opened(folder: Folder, relative: str, name: str) -> int | None:
    """The same for any file and system; None where there is no such file. Raises as `read`."""
    try:
        path = real_path(folder, relative)
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise corrupt(name, "is no file")
        handle = os.open(path, _READ | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _MISSING:
            return None
        if error.errno == errno.ELOOP:
            raise corrupt(name, "is a link in a circle") from error
        raise failure(name, error) from error
    try:
        _check_opened(handle, path, folder, name)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _is_in_root(path: str, folder: Folder) -> bool:
    # Mostly no link leads to the root: then it need not be resolved.
    return is_within(path, folder.root) or is_within(path, os.path.realpath(folder.root))


def _whole(handle: int, size: int, max_bytes: int) -> bytes:
    """All of a file of about `size` bytes; of one that is too large, more than `max_bytes`."""
    content = os.read(handle, size + 1)
    if len(content) == size:
        return content
    # It is being written, or the system answers in parts.
    parts = [content]
    total = len(content)
    while total <= max_bytes and (part := os.read(handle, 2**20)):
        parts.append(part)
        total += len(part)
    return b"".join(parts)


def _entries(entries: Iterable[os.DirEntry[str]], states: bool) -> Iterator[Entry]:
    for entry in entries:
        if _is_writers(entry.name) or not _is_text(entry.name):
            continue
        # A file may be gone by now, as those that writers rename are.
        with suppress(FileNotFoundError):
            state = entry.stat() if states else None
            if state is not None and stat.S_ISREG(state.st_mode):
                words = f"{state.st_size} {state.st_mtime_ns} {state.st_ino}"
                yield Entry(entry.name, False, words)
            else:
                yield Entry(entry.name, entry.is_dir())


def _check_opened(handle: int, path: str, folder: Folder, name: str) -> None:
    """InvalidArgument where a link out of the root was swapped in after the path was resolved."""
    try:
        opened = os.readlink(f"{HANDLES}/{handle}")
    except OSError:
        return
    # One that was replaced meanwhile has " (deleted)" after its name.
    if opened.removesuffix(" (deleted)") == path:
        return
    if not _is_in_root(opened, folder):
        raise outside(name)


def _make(folder: Path) -> None:
    """Make a folder and those above it, so that they outlive a crash."""
    if folder.is_dir():
        return
    _make(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    handle = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_writers(name: str) -> bool:
    """Whether a file is no part of a dataset, but what its writers lock or have not renamed yet."""
    return name.startswith(".") and (name == LOCK_FILE or name.endswith(".tmp"))


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8: no request could ask for another, and no answer could tell of it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        _tell_of(name)
        return False
    return True


@lru_cache(maxsize=1000)
def _tell_of(name: str) -> None:
    """Log a name once."""
    _log.warning("name_is_not_utf8", name=ascii(name))


@contextmanager
def _locked(place: Path, deadline: float, folder: Folder, relative: str) -> Iterator[None]:
    name = folder.file_name(relative)
    handle = os.open(place / LOCK_FILE, _LOCK, 0o666)
    try:
        _check_opened(handle, str(place / LOCK_FILE), folder, name)
        # A lock that is waited for could not be given up when the time is over.
        while not _lock(handle):
            if time.monotonic() > deadline:
                raise write_conflict(name)
            time.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
