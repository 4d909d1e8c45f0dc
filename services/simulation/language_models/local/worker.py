"""One thread a model, which serves its callers in turn.

Work is a generator that yields after each forward pass. The thread takes one step of the first
waiting caller's work, then one of the next caller's: a long job delays a short one by one pass a
step, not by its whole length.
"""

from __future__ import annotations

import asyncio
import atexit
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from threading import Condition, Event, Thread
from typing import Any, TypeVar

from services.simulation.language_models.local.rows import WorkStopped
from shared.errors import Unavailable

T = TypeVar("T")
Steps = Generator[None, None, T]

_LAST_STEP_SECONDS = 60.0


class _Job:
    def __init__(self, begin: Callable[[], Steps[Any]]) -> None:
        self.begin = begin
        self.steps: Steps[Any] | None = None
        self.result: Future[Any] = Future()
        self.stopped = Event()


class DeviceWorker:
    """Runs the work of many callers in one thread, a step of each in turn."""

    def __init__(self, name: str) -> None:
        self._jobs: deque[_Job] = deque()
        self._wakes = Condition()
        self._closed = False
        self._thread: Thread | None = None
        self._name = name

    async def run(self, begin: Callable[[], Steps[T]]) -> T:
        """What the generator that `begin` makes in the thread returns.

        A cancelled caller's work ends after its current step.

        Raises:
            Unavailable: the worker is closed, before or while it runs.
        """
        job = self._submit(begin)
        try:
            result: T = await asyncio.wrap_future(job.result)
        except WorkStopped as error:
            raise _closed() from error
        finally:
            # Reached on cancellation too: the thread drops the job at its next turn.
            job.stopped.set()
        return result

    def submit(self, begin: Callable[[], Steps[T]]) -> Future[T]:
        """Let the work run without waiting for it."""
        return self._submit(begin).result

    def close(self, wait_seconds: float = 0.0) -> None:
        """Stop after the running step, which is waited for so long at most.

        Work that waits ends with Unavailable.
        """
        with self._wakes:
            self._closed = True
            self._wakes.notify_all()
            thread = self._thread
        if thread is not None and wait_seconds > 0:
            thread.join(wait_seconds)

    def _submit(self, begin: Callable[[], Steps[Any]]) -> _Job:
        job = _Job(begin)
        with self._wakes:
            if self._closed:
                raise _closed()
            if self._thread is None:
                self._thread = Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()
                # A process that ends while the thread computes would be aborted.
                atexit.register(self._end_with_process)
            self._jobs.append(job)
            self._wakes.notify()
        return job

    def _serve(self) -> None:
        while True:
            with self._wakes:
                self._wakes.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    left, self._jobs = list(self._jobs), deque()
                    break
                job = self._jobs.popleft()
            if self._step(job):
                with self._wakes:
                    self._jobs.append(job)
        atexit.unregister(self._end_with_process)
        for job in left:
            if job.steps is not None or job.result.set_running_or_notify_cancel():
                _end(job, WorkStopped())

    def _end_with_process(self) -> None:
        self.close(_LAST_STEP_SECONDS)

    def _step(self, job: _Job) -> bool:
        """Whether there is more to do."""
        if job.steps is None and not job.result.set_running_or_notify_cancel():
            return False
        if job.stopped.is_set():
            _end(job, WorkStopped())
            return False
        try:
            if job.steps is None:
                job.steps = job.begin()
            next(job.steps)
        except StopIteration as end:
            job.result.set_result(end.value)
            return False
        except BaseException as error:  # noqa: BLE001 - the caller gets whatever it was
            _end(job, error)
            return False
        return True


def _end(job: _Job, error: BaseException) -> None:
    if job.steps is not None:
        job.steps.close()
    job.result.set_exception(error)


def _closed() -> Unavailable:
    return Unavailable("the language model is closed: the service is ending")
