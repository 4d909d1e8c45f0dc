"""Runs computations on a device, one at a time, away from the event loop.

One worker thread a device takes jobs from a bounded queue, so that a device never runs two at once
and a caller never blocks the event loop. A job whose caller has gone, by cancellation or because
its deadline passed, is dropped from the queue, and one that runs ends at its next check. A job is a
prepared run and what to derive from it, not an opaque function: several runs can later be taken
from the queue together.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from services.scalars.inference import (
    PreparedInference,
    RunResult,
    estimated_bytes,
    run_inference,
)
from services.scalars.metrics import JOBS, QUEUE_SECONDS, RUN_SECONDS, WAITING
from services.scalars.model.family import SubjectModel
from services.scalars.model.taps import RawTensorId
from shared.errors import ResourceExhausted, Unavailable

Result = TypeVar("Result")
Check = Callable[[], None]


class Abandoned(Exception):
    """Nobody waits for a job's result any more."""


@dataclass
class Job(Generic[Result]):
    """A run, and what to make of it.

    `derive` gets the run's result, and a function to call now and then, which raises once nobody
    waits any more. It must answer nothing that lives on the device. `extra_bytes` is the memory
    that it takes, besides that of the run.
    """

    prepared: PreparedInference
    captures: Collection[RawTensorId]
    derive: Callable[[RunResult, Check], Result]
    extra_bytes: int = 0


@dataclass(eq=False)
class _Queued:
    job: Job[Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    abandoned: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.perf_counter)


class Engine:
    """The worker of one model on one device.

    `queue_limit` is the number of jobs that may wait. `memory_limit` is the number of bytes that
    one job may take; None is most of what the device has free at the time.
    """

    def __init__(
        self, model: SubjectModel, *, queue_limit: int = 256, memory_limit: int | None = None
    ) -> None:
        self.model = model
        self._queue_limit = queue_limit
        self._memory_limit = memory_limit
        self._waiting: deque[_Queued] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._device = str(model.device)
        WAITING.labels(self._device).set_function(lambda: len(self._waiting))
        self._thread = threading.Thread(
            target=self._work, name=f"scalars-{model.device}", daemon=True
        )
        self._thread.start()

    async def run(self, job: Job[Result]) -> Result:
        """Queues a job and waits for its result.

        Raises ResourceExhausted where the queue is full or the job would take more memory than
        there is, with the estimate in its metadata, and Unavailable once the engine is closed.
        """
        self._admit(job)
        loop = asyncio.get_running_loop()
        queued = _Queued(job, loop, loop.create_future())
        with self._wake:
            if self._closed:
                raise Unavailable("the service is ending")
            if len(self._waiting) >= self._queue_limit:
                JOBS.labels("refused").inc()
                raise ResourceExhausted(
                    f"{self._queue_limit} requests are waiting already",
                    reason="QUEUE_FULL",
                    metadata={"limit": str(self._queue_limit)},
                    retry_after_seconds=1.0,
                )
            self._waiting.append(queued)
            self._wake.notify()
        try:
            result: Result = await queued.future
        except asyncio.CancelledError:
            queued.abandoned.set()
            # What already runs counts itself when it ends.
            with self._wake, contextlib.suppress(ValueError):
                self._waiting.remove(queued)
                JOBS.labels("abandoned").inc()
            raise
        return result

    @property
    def waiting(self) -> int:
        """Number of jobs in the queue, the running one not counted."""
        return len(self._waiting)

    def close(self) -> None:
        """Ends the worker once the running job has ended; waiting jobs get Unavailable."""
        with self._wake:
            self._closed = True
            dropped = list(self._waiting)
            self._waiting.clear()
            self._wake.notify()
        for queued in dropped:
            _settle(queued, error=Unavailable("the service is ending"))
        self._thread.join()

    def _admit(self, job: Job[Any]) -> None:
        run = estimated_bytes(
            self.model, len(job.prepared.tokens), job.captures, job.prepared.overwrites
        )
        estimate = run + job.extra_bytes
        limit = free_bytes(self.model.device) if self._memory_limit is None else self._memory_limit
        if estimate > limit:
            JOBS.labels("refused").inc()
            raise ResourceExhausted(
                f"this request would take about {estimate} bytes; there are {limit}",
                reason="REQUEST_TOO_LARGE",
                metadata={"estimated_bytes": str(estimate), "limit_bytes": str(limit)},
            )

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                queued = self._waiting.popleft()
            if not queued.abandoned.is_set():
                self._execute(queued)
            # While the queue is empty nothing else would let go of the result.
            del queued

    def _execute(self, queued: _Queued) -> None:
        def check() -> None:
            if queued.abandoned.is_set():
                raise Abandoned

        job = queued.job
        started = time.perf_counter()
        QUEUE_SECONDS.labels(self._device).observe(started - queued.since)
        try:
            result = run_inference(self.model, job.prepared, job.captures, check)
            check()
            with torch.inference_mode():
                value = job.derive(result, check)
        except Abandoned:
            JOBS.labels("abandoned").inc()
        except BaseException as error:  # noqa: BLE001 - whatever it is, its caller must learn of it
            exhausted = _out_of_memory(error, self.model.device)
            JOBS.labels("out_of_memory" if exhausted else "failed").inc()
            _settle(queued, error=exhausted or error)
        else:
            JOBS.labels("done").inc()
            _settle(queued, value=value)
        RUN_SECONDS.labels(self._device).observe(time.perf_counter() - started)


def _settle(queued: _Queued, *, value: Any = None, error: BaseException | None = None) -> None:
    def settle() -> None:
        if queued.future.done():
            return
        if error is None:
            queued.future.set_result(value)
        else:
            queued.future.set_exception(error)

    # The loop is closed where its process ends while a job still runs.
    with contextlib.suppress(RuntimeError):
        queued.loop.call_soon_threadsafe(settle)


def _out_of_memory(error: BaseException, device: torch.device) -> ResourceExhausted | None:
    """What to tell the caller where the device had too little memory after all."""
    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
    if not exhausted:
        return None
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return ResourceExhausted(
        "there was not enough memory for this request",
        reason="OUT_OF_MEMORY",
        metadata={"device": str(device)},
    )


_SHARE = 0.8
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Most of the memory that a device has free: what one request may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch keeps cached of its own is free to it as well.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(_SHARE * (free + cached))
    available = _meminfo_available()
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        available = min(available, max(0, limit - used))
    return int(_SHARE * available)


def _meminfo_available() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62
