"""What callers ask of a device, and how they wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from services.scalars.engine.reuse import RunKey
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import PreparedInference, RunResult

Result = TypeVar("Result")
Check = Callable[[], None]


class Abandoned(Exception):
    """Nobody waits for a job's result any more."""


@dataclass
class Job(Generic[Result]):
    """A run, and what to make of it.

    `derive` gets the run's result, and a function to call now and then, which raises once nobody
    waits any more. It must answer nothing that lives on the device, and may be called a second
    time where memory was too little. `extra_bytes` is the memory that it takes, besides that of
    the run.
    """

    prepared: PreparedInference
    captures: Collection[RawTensorId]
    derive: Callable[[RunResult, Check], Result]
    extra_bytes: int = 0


@dataclass(eq=False)
class Waiting:
    """A job in the queue, with what must be known of it to put it into a batch.

    `estimated` gives the estimate for its run by what is captured, `run_bytes` is that for what it
    wants itself. `deadline` is a time of `time.monotonic`, None for none. `passed_over` tells that
    younger jobs went before it, as they needed no run.
    """

    job: Job[Any]
    key: RunKey
    backward: bool
    estimated: Callable[[Collection[RawTensorId]], int]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    deadline: float | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.perf_counter)
    passed_over: bool = False
    run_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.run_bytes = self.estimated(self.job.captures)

    @property
    def n_tokens(self) -> int:
        """Length of its prompt."""
        return len(self.job.prepared.tokens)

    @property
    def n_bytes(self) -> int:
        """The estimate for all of it."""
        return self.run_bytes + self.job.extra_bytes

    @property
    def gone(self) -> bool:
        """Whether nobody waits for its result any more, or its caller's time is over."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return late or self.abandoned.is_set()

    def check(self) -> None:
        """Raises Abandoned once nobody waits."""
        if self.gone:
            raise Abandoned

    def settle(self, *, value: Any = None, error: BaseException | None = None) -> None:
        """Hands the caller a result, from any thread; what comes second is passed over."""
        if error is not None:
            write_down_trace(error)
        if isinstance(error, StopIteration):
            # No future takes it.
            error = RuntimeError(f"a derivation raised {error!r}")

        def hand_over() -> None:
            if self.future.done():
                return
            if error is None:
                self.future.set_result(value)
            else:
                self.future.set_exception(error)

        # The loop is closed where its process ends while a job still runs.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(hand_over)


def write_down_trace(error: BaseException) -> None:
    """Has a note in the place of an error's trace, whose frames hold the tensors of a run.

    The caller's future holds the error and is held by these frames, so that all of it would stay
    until the next collection of cycles.
    """
    if error.__traceback__ is not None:
        error.add_note("".join(traceback.format_exception(error)))
    found: list[BaseException | None] = [error]
    while found:
        each = found.pop()
        if each is not None and each.__traceback__ is not None:
            each.__traceback__ = None
            found += [each.__cause__, each.__context__]
