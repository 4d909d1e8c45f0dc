"""The queue of a device, and which of its jobs run together.

Jobs that come while the device is busy are there when it is free again, and run together. A device
that is free waits a moment for company, never longer than a small part of what a run takes. The job
that waits longest is always of the next batch, so that none is passed over for ever.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from services.scalars.engine.jobs import Waiting
from services.scalars.engine.reuse import RunKey
from services.scalars.model.taps import RawTensorId

_SHARE_OF_RUN = 0.05
"""Part of the time that recent runs took, beyond which nobody waits for company."""
_MEMORY_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class BatchLimits:
    """What runs together at most, and how long a free device waits for more.

    A single job may be over any of them: it runs alone then.
    """

    rows: int = 16
    tokens: int = 512
    n_bytes: int = 512 << 20
    window_seconds: float = 0.002


def form_batch(
    waiting: Sequence[Waiting], limits: BatchLimits, available_bytes: int
) -> list[Waiting]:
    """The jobs that run next together, the oldest that fits into memory first.

    All have a backward pass, or none has; but a job that wants the same inference as another
    joins it: it costs no row of its own, and the memory of what it alone captures. Empty where not
    even one job fits.
    """
    chosen: list[Waiting] = []
    runs: dict[RunKey, _Run] = {}
    tokens = taken = 0
    for each in waiting:
        run = runs.get(each.key)
        joins = run is not None and each.backward <= run.backward
        if run is None or not joins:
            after = _Run(each.backward, frozenset(each.job.captures), each.run_bytes)
            cost = each.n_bytes
        else:
            after = run.joined_by(each)
            cost = after.n_bytes - run.n_bytes + each.job.extra_bytes
        if not chosen:
            if cost > available_bytes:
                continue
        elif taken + cost > min(limits.n_bytes, available_bytes):
            continue
        if chosen and not joins:
            fits = len(runs) < limits.rows and tokens + each.n_tokens <= limits.tokens
            if each.backward != chosen[0].backward or not fits:
                continue
        if not joins:
            tokens += each.n_tokens
        runs[each.key] = after
        chosen.append(each)
        taken += cost
    return chosen


@dataclass(frozen=True)
class _Run:
    """What the chosen jobs on one inference capture together, and the estimate for it."""

    backward: bool
    captures: frozenset[RawTensorId]
    n_bytes: int

    def joined_by(self, waiting: Waiting) -> _Run:
        """With what another job captures."""
        captures = self.captures.union(waiting.job.captures)
        if len(captures) == len(self.captures):
            return self
        return replace(self, captures=captures, n_bytes=waiting.estimated(captures))


class JobQueue:
    """Jobs that wait for a device; callers put them in, its worker takes them out in batches."""

    def __init__(self, limits: BatchLimits, limit: int) -> None:
        self._limits = limits
        self._limit = limit
        self._waiting: list[Waiting] = []
        self._changed = threading.Condition()
        self._closed = False
        self._callers = 1
        self._run_seconds = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether it takes no more jobs."""
        return self._closed

    def put(self, waiting: Waiting) -> bool:
        """Adds a job; False where the queue is full or closed."""
        with self._changed:
            if self._closed or len(self._waiting) >= self._limit:
                return False
            self._waiting.append(waiting)
            self._changed.notify()
        return True

    def remove(self, waiting: Waiting) -> bool:
        """Takes a job out that nobody waits for any more; False where it is in no queue."""
        with self._changed, contextlib.suppress(ValueError):
            self._waiting.remove(waiting)
            return True
        return False

    def close(self) -> list[Waiting]:
        """Takes no more jobs, and gives those that waited."""
        with self._changed:
            self._closed = True
            dropped, self._waiting = self._waiting, []
            self._changed.notify()
        return dropped

    def take(
        self, served_by_reuse: Callable[[Waiting], bool], available_bytes: Callable[[], int]
    ) -> list[Waiting]:
        """Waits for jobs, and gives those that run next; an empty list once it is closed.

        Jobs that need no run are given at once and by themselves, but where the oldest job was
        passed over so before: then its batch is given with them. Where no job fits into the memory
        that is available now, it waits until there is more of it.
        """
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return []
                ready = [each for each in self._waiting if each.gone or served_by_reuse(each)]
                oldest = self._waiting[0]
                alone = bool(ready) and (oldest in ready or not oldest.passed_over)
                if not ready:
                    self._wait_for_company()
            # Looks at files of the system, which no caller should wait for.
            available = 0 if alone else available_bytes()
            with self._changed:
                # Some may have left meanwhile.
                there = set(self._waiting)
                taken = [each for each in ready if each in there]
                if not alone:
                    there.difference_update(taken)
                    others = [each for each in self._waiting if each in there]
                    batch = form_batch(others, self._limits, available)
                    if batch:
                        self._callers = len(self._waiting)
                    taken += batch
                if not taken:
                    self._changed.wait(_MEMORY_POLL_SECONDS)
                    continue
                given = set(taken)
                self._waiting = [each for each in self._waiting if each not in given]
                if alone and self._waiting:
                    self._waiting[0].passed_over = True
            return taken

    def ran(self, seconds: float) -> None:
        """Notes how long a batch took."""
        before = self._run_seconds
        self._run_seconds = seconds if before == 0 else 0.8 * before + 0.2 * seconds

    def retry_after_seconds(self) -> float:
        """When a caller that finds the queue full may try again."""
        batches = 1 + len(self._waiting) / self._limits.rows
        return min(30.0, max(0.1, batches * self._run_seconds))

    def _wait_for_company(self) -> None:
        """Waits until a batch is full, all are there that were there before, or time is up."""
        patience = min(self._limits.window_seconds, _SHARE_OF_RUN * self._run_seconds)
        until = self._waiting[0].since + patience
        while self._waiting and not self._closed:
            left = until - time.perf_counter()
            if left <= 0 or 1 < self._callers <= len(self._waiting) or self._is_full():
                return
            self._changed.wait(left)

    def _is_full(self) -> bool:
        tokens = sum(each.n_tokens for each in self._waiting)
        return len(self._waiting) >= self._limits.rows or tokens >= self._limits.tokens
