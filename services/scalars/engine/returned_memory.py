"""What the C library's allocator does with the memory of large tensors once they are gone."""

from __future__ import annotations

import ctypes
import os

LARGE_BYTES = 8 << 20

# M_MMAP_THRESHOLD and M_ARENA_MAX of glibc's malloc.h.
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8


def return_large_memory() -> None:
    """Have glibc give the memory of large tensors back to the system; elsewhere nothing.

    Of its own accord it keeps blocks of up to 32 MiB once one was freed: after batches of 4000
    tokens of a small model a process of 0.3 GB kept 1.1, and with this 0.4. All threads share what
    is freed of smaller blocks, as each would keep holes of its own. `MALLOC_MMAP_THRESHOLD_` and
    `MALLOC_ARENA_MAX` in the environment have their way.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_ARENA_MAX, 1)
