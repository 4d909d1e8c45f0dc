"""The resident memory of a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def resident_bytes(pid: int) -> int:
    """What a process holds in memory now."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """The resident memory of a process, looked at every 20 ms."""
    seen = [resident_bytes(pid)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            seen.append(resident_bytes(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
