"""What jobs that run together hold: what they are charged, and what is free once they end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from services.scalars.engine import batches_of_jobs
from services.scalars.engine.batches_of_jobs import end_backward_pass
from services.scalars.engine.worker import Check, Engine, Job
from services.scalars.model.subject import Subject, load_subject
from services.scalars.model.taps import Taps
from services.scalars.passes import inference as passes
from services.scalars.passes.inference import (
    PreparedInference,
    RunResult,
    estimated_bytes,
)
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_gates import CAPTURE, Gate, begun, until
from tests.unit.scalars_jobs import GRADIENT, PROBS, inferences_of, tensors, together


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu")


@pytest.fixture
def engine(subject: Subject) -> Iterator[Engine]:
    made = Engine(subject.model)
    yield made
    made.close()


@pytest.fixture
def inferences(subject: Subject) -> list[PreparedInference]:
    return inferences_of(subject)


def watched(
    monkeypatch: pytest.MonkeyPatch, begins: Callable[[], object] = lambda: None
) -> list[weakref.ref[object]]:
    """The taps of all runs to come; `begins` is called when one does."""
    held: list[weakref.ref[object]] = []

    class WatchedTaps(Taps):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            held.append(weakref.ref(self))
            begins()

    monkeypatch.setattr(passes, "Taps", WatchedTaps)
    return held


async def test_what_ends_between_its_passes_or_is_run_again_holds_no_tensors(
    subject: Subject, inferences: list[PreparedInference], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    held = watched(monkeypatch, lambda: gate.derive(None, lambda: None))  # type: ignore[arg-type]
    impossible = replace(inferences[1], tokens=(subject.model.shape.vocab_size + 7,))
    engine = Engine(subject.model, reuse_bytes=0)
    gc.collect()
    gc.disable()
    try:
        job = Job(inferences[0], [CAPTURE, GRADIENT], tensors)
        abandoned = asyncio.create_task(engine.run(job))
        await begun(gate)
        abandoned.cancel()
        await asyncio.gather(abandoned, return_exceptions=True)
        gate.release.set()
        await until(lambda: all(each() is None for each in held))
        monkeypatch.undo()
        others = watched(monkeypatch)
        jobs = [Job(each, [CAPTURE, GRADIENT], tensors) for each in (inferences[0], impossible)]
        found = await together(engine, jobs)
        assert isinstance(found.pop(), IndexError)
        await until(lambda: all(each() is None for each in others))
        # The worker is held by one run; two rows run together, and then one by one.
        assert (len(held), len(others)) == (1, 4)
    finally:
        gc.enable()
        engine.close()


async def test_what_failed_holds_no_tensors(
    subject: Subject, inferences: list[PreparedInference], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even until garbage is collected, neither of a derivation nor of a run."""
    held = watched(monkeypatch)

    def fail(run: RunResult, check: Check) -> None:
        held.append(weakref.ref(run.raw_store))
        raise ZeroDivisionError("a defect")

    impossible = replace(inferences[1], tokens=(subject.model.shape.vocab_size + 7,))
    engine = Engine(subject.model, reuse_bytes=0)
    gc.collect()
    gc.disable()
    try:
        for prepared, error in ((inferences[0], ZeroDivisionError), (impossible, IndexError)):
            with pytest.raises(error) as caught:
                await engine.run(Job(prepared, [CAPTURE, GRADIENT], fail))
            # What a log tells of it.
            assert "run_rows" in caught.value.__notes__[0] or "fail" in caught.value.__notes__[0]
            del caught
            await until(lambda: all(each() is None for each in held))
    finally:
        gc.enable()
        engine.close()
    assert len(held) == 3


async def test_room_is_made_for_all_that_a_shared_run_captures(
    engine: Engine,
    subject: Subject,
    inferences: list[PreparedInference],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def missing(n_bytes: int) -> int:
        asked.append(n_bytes)
        return 0

    monkeypatch.setattr(engine._memory, "missing", missing)
    prepared = inferences[0]
    apart = [CAPTURE], [PROBS]
    await together(engine, [Job(prepared, each, tensors) for each in apart])
    sizes = [
        estimated_bytes(subject.model, len(prepared.tokens), each)
        for each in (*apart, [CAPTURE, PROBS])
    ]
    assert asked[-1] == sizes[2] > max(sizes[:2])


async def test_the_memory_of_a_batch_is_free_before_anything_is_derived(
    engine: Engine, inferences: list[PreparedInference], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[StorageWeakRef] = []

    def run_rows(*arguments: Any) -> list[RunResult]:
        results = passes.run_rows(*arguments)
        for result in results if len(results) > 1 else ():
            packed.extend(
                StorageWeakRef(each.untyped_storage())  # type: ignore[no-untyped-call]
                for each in result.raw_store.tensors.values()
            )
        return results

    monkeypatch.setattr(batches_of_jobs, "run_rows", run_rows)

    def are_gone(run: RunResult, check: Check) -> list[bool]:
        return [each.expired() for each in packed]  # type: ignore[no-untyped-call]

    jobs = [Job(each, [CAPTURE, GRADIENT], are_gone) for each in inferences]
    found = await together(engine, jobs)
    assert found == [[True] * 8] * 4


class Watch:
    """A hook that lives as long as the graph does that it is put into."""

    def __call__(self, gradient: torch.Tensor) -> None:
        pass


def test_a_backward_pass_that_fails_leaves_no_graph() -> None:
    def fail() -> weakref.ref[Watch]:
        start = torch.randn(10, requires_grad=True)
        held, watch = start * 2, Watch()
        held.register_hook(watch)  # type: ignore[no-untyped-call]
        sine, cosine = torch.sin(held), torch.cos(held)
        # The sine's node is ready when the cosine's fails.
        cosine.register_hook(lambda gradient: [][0])  # type: ignore[no-untyped-call]
        with pytest.raises(IndexError):
            torch.autograd.grad((sine * cosine).sum(), start)
        return weakref.ref(watch)

    graph = fail()
    gc.collect()
    assert graph() is not None
    end_backward_pass()
    gc.collect()
    assert graph() is None
