"""Runs computations on a device, batched over all callers, away from the event loop.

One worker thread a device takes jobs from a bounded queue, those that can run together at once:
one forward and one backward pass for all of them. A job is a prepared run and what to derive from
it. Jobs on the same inference share one run, and runs are kept for later jobs. A job whose caller
has gone, by cancellation or because its deadline passed, leaves the queue, and is not derived
where its run was under way already. What fails is tried again in smaller parts: a job fails for
reasons of its own alone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from services.scalars.autoencoders import NO_AUTOENCODERS, AutoencoderSet
from services.scalars.engine.admission import MemoryBudget
from services.scalars.engine.batches_of_jobs import BatchOfJobs
from services.scalars.engine.jobs import Check, Job, Waiting
from services.scalars.engine.metrics import JOBS, QUEUE_SECONDS, RUN_SECONDS, WAITING
from services.scalars.engine.queueing import BatchLimits, JobQueue
from services.scalars.engine.reuse import DEFAULT_LIMIT_BYTES, RunCache, run_key
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import PassType
from services.scalars.passes.inference import estimated_bytes
from shared.errors import ResourceExhausted, Unavailable
from shared.rpc.context import seconds_left

__all__ = ["Check", "Engine", "Job"]

Result = TypeVar("Result")


class Engine:
    """The worker of one model on one device.

    `queue_limit` is the number of jobs that may wait. `memory_limit` is the number of bytes that
    what runs together may take; None is most of what the device has free at the time.
    `reuse_bytes` bounds what is kept of runs for later jobs.
    """

    def __init__(
        self,
        model: SubjectModel,
        autoencoders: AutoencoderSet = NO_AUTOENCODERS,
        *,
        queue_limit: int = 256,
        memory_limit: int | None = None,
        batches: BatchLimits | None = None,
        reuse_bytes: int = DEFAULT_LIMIT_BYTES,
    ) -> None:
        self.model = model
        self._autoencoders = autoencoders
        self._queue_limit = queue_limit
        self._device = str(model.device)
        self._runs = RunCache(reuse_bytes, self._device)
        self._memory = MemoryBudget(model.device, memory_limit, lambda: self._runs.n_bytes)
        self._queue = JobQueue(batches or BatchLimits(), queue_limit)
        WAITING.labels(self._device).set_function(lambda: len(self._queue))
        self._threads = torch.get_num_threads()
        self._side_by_side = (
            ThreadPoolExecutor(
                self._threads,
                thread_name_prefix=f"scalars-{model.device}-derive",
                initializer=torch.set_num_threads,
                initargs=(1,),
            )
            if model.device.type == "cpu" and self._threads > 1
            else None
        )
        self._thread = threading.Thread(
            target=self._work, name=f"scalars-{model.device}", daemon=True
        )
        self._thread.start()

    async def run(self, job: Job[Result]) -> Result:
        """Queues a job and waits for its result.

        Raises ResourceExhausted where the queue is full, with the time to try again after, or
        where the job would take more memory than there is, with the estimate in its metadata;
        and Unavailable once the engine is closed.
        """
        waiting = self._waiting(job)
        try:
            self._memory.admit(waiting.n_bytes)
        except ResourceExhausted:
            JOBS.labels("too_large").inc()
            raise
        if not self._queue.put(waiting):
            if self._queue.closed:
                raise Unavailable("the service is ending")
            JOBS.labels("shed").inc()
            raise ResourceExhausted(
                f"{self._queue_limit} requests are waiting already",
                reason="QUEUE_FULL",
                metadata={"limit": str(self._queue_limit)},
                retry_after_seconds=self._queue.retry_after_seconds(),
            )
        try:
            result: Result = await waiting.future
        except asyncio.CancelledError:
            waiting.abandoned.set()
            # What was taken from the queue already counts itself when it ends.
            if self._queue.remove(waiting):
                JOBS.labels("abandoned").inc()
            raise
        finally:
            # The trace of an error holds this frame, and what waited holds the error.
            del waiting
        return result

    @property
    def waiting(self) -> int:
        """Number of jobs in the queue, the running ones not counted."""
        return len(self._queue)

    def close(self) -> None:
        """Ends the worker once the running batch has ended; waiting jobs get Unavailable."""
        self._refuse_all()
        self._thread.join()
        if self._side_by_side is not None:
            self._side_by_side.shutdown()

    def _waiting(self, job: Job[Any]) -> Waiting:
        loop = asyncio.get_running_loop()
        left = seconds_left()
        prepared = job.prepared
        return Waiting(
            job=job,
            key=run_key(prepared),
            backward=any(target.pass_type is PassType.BACKWARD for target in job.captures),
            estimated=lambda captures: estimated_bytes(
                self.model,
                len(prepared.tokens),
                captures,
                prepared.overwrites,
                self._autoencoders,
            ),
            loop=loop,
            future=loop.create_future(),
            deadline=None if left is None else time.monotonic() + left,
        )

    def _refuse_all(self) -> None:
        for waiting in self._queue.close():
            waiting.settle(error=Unavailable("the service is ending"))

    def _work(self) -> None:
        # The number is each thread's own; threads that derive side by side have set theirs.
        torch.set_num_threads(self._threads)
        try:
            while self._serve_next():
                pass
        finally:
            # Whatever ended this thread: nobody waits for it in vain.
            self._refuse_all()

    def _serve_next(self) -> bool:
        """Waits for a batch and serves it; False once there will be none.

        What it holds of a batch ends with it, also while the queue is empty.
        """
        taken = self._queue.take(self._is_at_hand, self._memory.available_when_idle)
        if not taken:
            return False
        started = time.perf_counter()
        for waiting in taken:
            QUEUE_SECONDS.labels(self._device).observe(started - waiting.since)
        batch = BatchOfJobs(
            self.model, self._autoencoders, self._runs, self._memory, self._side_by_side, taken
        )
        batch.serve()
        seconds = time.perf_counter() - started
        RUN_SECONDS.labels(self._device).observe(seconds)
        if batch.has_run:
            self._queue.ran(seconds)
        return True

    def _is_at_hand(self, waiting: Waiting) -> bool:
        return self._runs.holds(waiting.key, waiting.job.captures)
