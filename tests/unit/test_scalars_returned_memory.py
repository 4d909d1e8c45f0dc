"""The memory of large tensors goes back to the system, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.unit.errors_in_source import REPOSITORY

KEPT = """
import ctypes, sys
from pathlib import Path

if sys.argv[1] == "returned":
    from services.scalars.engine.returned_memory import return_large_memory
    return_large_memory()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def block(n_bytes):
    return ctypes.create_string_buffer(n_bytes)

# Freeing one makes the allocator keep those of its size.
del_first = block(24 << 20); del del_first
before = resident()
blocks, between = [], []
for _ in range(20):
    blocks.append(block(16 << 20))
    between.append(block(100_000))
blocks.clear()
print(resident() - before)
"""


def test_large_memory_is_returned() -> None:
    def kept(how: str) -> int:
        environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
        command = [sys.executable, "-c", KEPT, how]
        done = subprocess.run(
            command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert kept("returned") < kept("as it is") / 4
