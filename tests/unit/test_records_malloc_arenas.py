"""The allocator's arenas, counted by glibc itself in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.records.malloc_arenas import MAX_ARENAS
from tests.load.processes import REPOSITORY

PROGRAM = """
import ctypes, sys, threading
from services.records.malloc_arenas import limit_arenas

if "limited" in sys.argv:
    limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
together = threading.Barrier(16)

def allocate():
    together.wait()
    libc.malloc(10_000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, out)
libc.fclose(out)
"""


def arenas(tmp_path: Path, *arguments: str, **environment: str) -> int:
    report = tmp_path / "malloc"
    command = [sys.executable, "-c", PROGRAM, str(report), *arguments]
    subprocess.run(command, check=True, cwd=REPOSITORY, env={**os.environ, **environment})
    return report.read_text().count("<heap nr=")


def test_threads_share_a_few_arenas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert arenas(tmp_path, "limited") <= MAX_ARENAS
    assert arenas(tmp_path) > MAX_ARENAS
    assert arenas(tmp_path, "limited", MALLOC_ARENA_MAX="5") == 5
