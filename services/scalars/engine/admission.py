"""How much memory runs may take, and whose request is too large for a device at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch

from shared.errors import ResourceExhausted

_SHARE = 0.8
_CGROUP = Path("/sys/fs/cgroup")


class MemoryBudget:
    """What the runs of one device may take.

    `limit_bytes` is the number of bytes that they may take together; None is most of what the
    device has free at the time. `releasable_bytes` tells what could be given back, which counts
    as free.
    """

    def __init__(
        self,
        device: torch.device,
        limit_bytes: int | None = None,
        releasable_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._device = device
        self._limit_bytes = limit_bytes
        self._releasable_bytes = releasable_bytes
        self._idle_bytes = self.available()

    def available(self) -> int:
        """Bytes that can be had now."""
        if self._limit_bytes is not None:
            return self._limit_bytes
        return free_bytes(self._device) + self._releasable_bytes()

    def available_when_idle(self) -> int:
        """The same, asked while nothing runs; remembered for the next refusal.

        A device that failed may no longer say it: then it is what it was, and what is run there
        tells its callers what is wrong.
        """
        with contextlib.suppress(RuntimeError):
            self._idle_bytes = self.available()
        return self._idle_bytes

    def missing(self, n_bytes: int) -> int:
        """How much of what could be given back must be, for these bytes to be had."""
        if self._limit_bytes is not None:
            return 0
        return max(0, n_bytes - free_bytes(self._device))

    def admit(self, estimated_bytes: int) -> None:
        """Raises ResourceExhausted, with estimate and limit, for what no waiting would help.

        What runs now takes memory that will be free again: so a job waits that fits into what
        was free when nothing ran.
        """
        if estimated_bytes <= self._idle_bytes:
            return
        limit = max(self._idle_bytes, self.available())
        if estimated_bytes > limit:
            raise ResourceExhausted(
                f"this request would take about {estimated_bytes} bytes; there are {limit}",
                reason="REQUEST_TOO_LARGE",
                metadata={"estimated_bytes": str(estimated_bytes), "limit_bytes": str(limit)},
            )


# What torch and the C++ library say of it in a RuntimeError.
_EXHAUSTED = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "Cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was too little, on any device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | OSError)
        and any(words in str(error) for words in _EXHAUSTED)
    )


def out_of_memory(device: torch.device) -> ResourceExhausted:
    """What to tell a caller whose job needs more memory than there is after all."""
    return ResourceExhausted(
        "there was not enough memory for this request",
        reason="OUT_OF_MEMORY",
        metadata={"device": str(device)},
    )


def free_bytes(device: torch.device) -> int:
    """Most of the memory that a device has free, within a control group (version 2) too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps cached of its own is free to it as well.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(_SHARE * (free + cached))
    available = _meminfo_available()
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text()) - _inactive_file()
        available = min(available, max(0, limit - used))
    return int(_SHARE * available)


def _inactive_file() -> int:
    """What a control group has of files that were read, and gives back when asked for memory."""
    with contextlib.suppress(OSError, ValueError):
        for line in (_CGROUP / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return int(value)
    return 0


def _meminfo_available() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62
