"""Running jobs together: one run for all of them, then what each derives.

On a CPU the derivations of a batch run side by side, one processor each: they are many small steps,
which gain little from several. What is derived alone has all processors.

Whatever goes wrong is tried again in smaller parts. A batch that raises is run row by row, so that
a row that can't be run fails alone. A batch for which memory is too little is halved, after what
was kept for later requests was given back; a row that fails alone is answered.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from functools import partial

import torch

from services.scalars.autoencoders import AutoencoderSet
from services.scalars.engine.admission import MemoryBudget, is_out_of_memory, out_of_memory
from services.scalars.engine.jobs import Abandoned, Waiting, write_down_trace
from services.scalars.engine.metrics import (
    BATCH_ROWS,
    BATCH_TOKENS,
    COALESCED,
    JOBS,
    OUT_OF_MEMORY_SPLITS,
)
from services.scalars.engine.reuse import RunCache, RunKey, unshared
from services.scalars.model.family import SubjectModel
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import Row, RunResult, run_rows
from shared.errors import DeadlineExceeded


@dataclass(eq=False)
class _SharedRun:
    """One inference, and the jobs that want it."""

    jobs: list[Waiting]
    retried: bool = False
    """Whether memory was too little for it before, when it was not alone."""

    @property
    def captures(self) -> frozenset[RawTensorId]:
        return frozenset().union(*(each.job.captures for each in self.jobs))

    def check(self) -> None:
        """Raises Abandoned once nobody waits for it."""
        if all(job.gone for job in self.jobs):
            raise Abandoned

    @property
    def run_bytes(self) -> int:
        return self.jobs[0].estimated(self.captures)


class BatchOfJobs:
    """Jobs that were taken from the queue together, until each has its result."""

    def __init__(
        self,
        model: SubjectModel,
        autoencoders: AutoencoderSet,
        runs: RunCache,
        memory: MemoryBudget,
        side_by_side: Executor | None,
        taken: Sequence[Waiting],
    ) -> None:
        self._model = model
        self._autoencoders = autoencoders
        self._runs = runs
        self._memory = memory
        self._side_by_side = side_by_side
        self._taken = taken
        self._parts: list[list[_SharedRun]] = []
        self.has_run = False

    def serve(self) -> None:
        """Runs and derives all of them; every job is settled in the end."""
        try:
            shared = self._shared_runs()
            self._parts = [shared] if shared else []
            while self._parts:
                self._run(self._parts.pop(0))
        except BaseException as error:  # noqa: BLE001 - the worker lives, its callers learn of it
            for each in self._taken:
                each.settle(error=error)

    def _shared_runs(self) -> list[_SharedRun]:
        """What is to be run; what needs no run is derived here."""
        found: dict[RunKey, _SharedRun] = {}
        at_hand: list[tuple[Waiting, RunResult]] = []
        for each in self._taken:
            if self._is_dropped(each):
                continue
            run = self._runs.get(each.key, each.job.captures)
            if run is not None:
                at_hand.append((each, run))
            elif each.key in found:
                found[each.key].jobs.append(each)
                COALESCED.inc()
            else:
                found[each.key] = _SharedRun([each])
        self._do_all(
            [partial(self._derive, waiting, run, crowded=True) for waiting, run in at_hand]
        )
        return list(found.values())

    def _run(self, part: list[_SharedRun]) -> None:
        for each in part:
            each.jobs = [job for job in each.jobs if not self._is_dropped(job)]
        part = [each for each in part if each.jobs]
        if not part:
            return
        self._runs.release(self._memory.missing(sum(each.run_bytes for each in part)))
        crowded = len(part) > 1 or self._runs.n_bytes > 0
        outcome = self._attempt(part)
        if isinstance(outcome, BaseException):
            end_backward_pass()
            self._fail(part, outcome)
        elif outcome is None:
            end_backward_pass()
            self._split(part, crowded=crowded)
        else:
            # Before anything is derived: the memory of the batch is free once all rows left it.
            self._do_all([partial(self._keep, each, outcome, row) for row, each in enumerate(part)])
            derivations = [
                partial(self._derive_all, each, result, crowded=crowded)
                for each, result in zip(part, outcome, strict=True)
            ]
            # What a row has captured is let go of once it is derived.
            del outcome
            self._do_all(derivations)

    def _attempt(self, part: Sequence[_SharedRun]) -> list[RunResult] | BaseException | None:
        """The runs' results in order, what they raised, or None where memory was too little.

        What an error's trace holds is let go of here where memory was too little.
        """
        self.has_run = True
        BATCH_ROWS.observe(len(part))
        BATCH_TOKENS.observe(sum(each.jobs[0].n_tokens for each in part))
        rows = [Row(each.jobs[0].job.prepared, each.captures, each.check) for each in part]
        try:
            return run_rows(self._model, rows, self._autoencoders)
        except BaseException as error:  # noqa: BLE001 - whatever it is, a caller must learn of it
            if is_out_of_memory(error):
                return None
            # Its trace would keep the frame that is given it, and what the run left.
            write_down_trace(error)
            return error

    def _fail(self, part: Sequence[_SharedRun], error: BaseException) -> None:
        if isinstance(error, Abandoned) or len(part) > 1:
            # Row by row: those that nobody waits for drop out, and one that fails does so alone.
            self._parts[:0] = [[each] for each in part]
            return
        for job in part[0].jobs:
            JOBS.labels("failed").inc()
            job.settle(error=error)

    def _split(self, part: list[_SharedRun], *, crowded: bool) -> None:
        """Tries again in halves what memory was too little for, or answers so."""
        self._make_room()
        half = len(part) // 2
        if half:
            OUT_OF_MEMORY_SPLITS.inc()
            self._parts[:0] = [part[:half], part[half:]]
        elif crowded and not part[0].retried:
            part[0].retried = True
            self._parts.insert(0, part)
        else:
            for job in part[0].jobs:
                self._answer_out_of_memory(job)

    def _keep(self, shared: _SharedRun, results: list[RunResult], row: int) -> None:
        """Keeps a row's run for later jobs, and puts it as it is kept in its place."""
        try:
            results[row] = self._runs.keep(shared.jobs[0].key, results[row])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._make_room()

    def _derive_all(self, shared: _SharedRun, result: RunResult, *, crowded: bool) -> None:
        crowded = (crowded or len(shared.jobs) > 1) and not shared.retried
        for job in shared.jobs:
            self._derive(job, unshared(result), crowded=crowded)

    def _derive(self, waiting: Waiting, run: RunResult, *, crowded: bool) -> None:
        """Derives and settles one job; where memory is too little for it beside others, later."""
        exhausted = False
        try:
            waiting.check()
            with torch.inference_mode():
                value = waiting.job.derive(run, waiting.check)
        except Abandoned:
            self._is_dropped(waiting)
        except BaseException as error:  # noqa: BLE001 - whatever it is, its caller must learn of it
            exhausted = is_out_of_memory(error)
            end_backward_pass()
            if not exhausted:
                JOBS.labels("failed").inc()
                waiting.settle(error=error)
        else:
            JOBS.labels("done").inc()
            waiting.settle(value=value)
        if not exhausted:
            return
        del run
        self._make_room()
        if crowded:
            OUT_OF_MEMORY_SPLITS.inc()
            self._parts.append([_SharedRun([waiting], retried=True)])
        else:
            self._answer_out_of_memory(waiting)

    def _do_all(self, work: list[partial[None]]) -> None:
        """Does all of it, side by side where there is more than one thing to do."""
        if self._side_by_side is None or len(work) < 2:
            while work:
                work.pop(0)()
            return
        futures = []
        while work:
            futures.append(self._side_by_side.submit(work.pop(0)))
        wait(futures)
        for future in futures:
            future.result()

    def _make_room(self) -> None:
        self._runs.clear()
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _answer_out_of_memory(self, waiting: Waiting) -> None:
        JOBS.labels("out_of_memory").inc()
        waiting.settle(error=out_of_memory(self._model.device))

    def _is_dropped(self, waiting: Waiting) -> bool:
        if not waiting.gone:
            return False
        JOBS.labels("abandoned").inc()
        # Heard only where its caller has not cancelled it yet.
        waiting.settle(error=DeadlineExceeded("the call's time was over before it was served"))
        return True


def end_backward_pass() -> None:
    """Lets go of the graph of a backward pass that failed in this thread.

    Nodes that were ready then stay in the thread's queue, with all the tensors behind them, until
    the next backward pass. Here is one.
    """
    with torch.inference_mode(False), torch.enable_grad():
        start = torch.zeros(1, requires_grad=True)
        torch.autograd.grad(start * 2, start)
