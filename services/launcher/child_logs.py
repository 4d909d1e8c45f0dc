"""The services' logs where a command starts them for itself: shown only where one of them fails."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from services.launcher.processes import ChildFailed

_LOG_BYTES = 8_000


@contextmanager
def kept_log() -> Iterator[int]:
    """A file descriptor for logs; their end goes to standard error where a child fails."""
    with _log() as log:
        try:
            yield log.fileno()
        except ChildFailed:
            sys.stderr.write(_end_of(log.fileno()))
            raise


def _log() -> IO[bytes]:
    # In memory where the system has that: nothing is left on a disk, and a full one is no matter.
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("neuropil-log"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _end_of(log: int) -> str:
    size = os.fstat(log).st_size
    text = os.pread(log, _LOG_BYTES, max(0, size - _LOG_BYTES)).decode("utf-8", "replace")
    return text[text.find("\n") + 1 :] if size > _LOG_BYTES else text
