"""Jobs that run together: shared runs, runs used again, and what fails or ends alone."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from services.scalars.engine import batches_of_jobs
from services.scalars.engine.batches_of_jobs import end_backward_pass
from services.scalars.engine.queueing import BatchLimits
from services.scalars.engine.worker import Check, Engine, Job
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.subject import Subject, load_subject
from services.scalars.model.taps import RawTensorId, Taps
from services.scalars.passes import inference as passes
from services.scalars.passes.inference import (
    InferenceSpec,
    PreparedInference,
    RunResult,
    estimated_bytes,
    prepare_inference,
    run_inference,
)
from services.scalars.passes.losses import LossKind, LossSpec
from shared.errors import DeadlineExceeded, ResourceExhausted
from shared.rpc.context import enter_deadline
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_gates import CAPTURE, Gate, begun, outcomes, sample, until

PROMPTS = ("The cat", "The dog sat on the mat", " mat", "A cat and a dog")
GRADIENT = RawTensorId(ActivationLocationType.MLP_POST_ACT, 0, PassType.BACKWARD)
PROBS = RawTensorId(ActivationLocationType.ATTN_QK_PROBS, 1, PassType.FORWARD)


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
    loss = LossSpec(LossKind.LOGIT_DIFF, (" cat",))
    return [
        prepare_inference(InferenceSpec(each, loss=loss), subject.model, subject.tokenizer, "i")
        for each in PROMPTS
    ]


def tensors(run: RunResult, check: Check) -> dict[RawTensorId, torch.Tensor]:
    return {target: tensor.clone() for target, tensor in run.raw_store.tensors.items()}


@asynccontextmanager
async def held(engine: Engine, prepared: PreparedInference) -> AsyncIterator[None]:
    """Keeps the worker busy, so that what is queued meanwhile is there together."""
    gate = Gate()
    ended = replace(prepared, tokens=prepared.tokens[:1], loss=None)
    running = asyncio.create_task(engine.run(Job(ended, (), gate.derive)))
    await begun(gate)
    try:
        yield
    finally:
        gate.release.set()
        await running


async def together(engine: Engine, jobs: Sequence[Job[Any]]) -> list[Any]:
    """Runs jobs that are in the queue at the same time; results or what was raised."""
    async with held(engine, jobs[0].prepared):
        tasks = [asyncio.create_task(engine.run(each)) for each in jobs]
        await until(lambda: engine.waiting == len(jobs))
    return await asyncio.gather(*tasks, return_exceptions=True)


def counted(*names: str) -> list[float]:
    return [sample(name) for name in names]


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


async def test_jobs_run_together_as_alone(
    engine: Engine, subject: Subject, inferences: list[PreparedInference]
) -> None:
    before = counted("batch_rows_count", "batch_rows_sum", "batch_tokens_sum")
    captures = [CAPTURE, GRADIENT, PROBS]
    found = await together(engine, [Job(each, captures, tensors) for each in inferences])
    after = counted("batch_rows_count", "batch_rows_sum", "batch_tokens_sum")
    tokens = sum(len(each.tokens) for each in inferences)
    # One batch holds the worker, the other is all of them.
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 5, 1 + tokens]
    for inference, got in zip(inferences, found, strict=True):
        alone = run_inference(subject.model, inference, captures).raw_store.tensors
        assert set(got) == set(alone)
        assert all(same(got[target], alone[target]) for target in alone)


async def test_forward_and_backward_passes_run_apart(
    engine: Engine, inferences: list[PreparedInference]
) -> None:
    (before,) = counted("batch_rows_count")
    captures = [[CAPTURE], [GRADIENT], [CAPTURE], [GRADIENT]]
    jobs = [Job(each, wanted, tensors) for each, wanted in zip(inferences, captures, strict=True)]
    await together(engine, jobs)
    assert counted("batch_rows_count") == [before + 3]


async def test_a_small_batch_at_a_time(
    subject: Subject, inferences: list[PreparedInference]
) -> None:
    engine = Engine(subject.model, batches=BatchLimits(rows=3))
    (before,) = counted("batch_rows_count")
    await together(engine, [Job(each, [CAPTURE], tensors) for each in inferences])
    assert counted("batch_rows_count") == [before + 3]
    engine.close()


async def test_the_same_inference_runs_once(
    engine: Engine, subject: Subject, inferences: list[PreparedInference]
) -> None:
    before = counted("batch_rows_sum", "coalesced_jobs_total")
    wanted = [[CAPTURE, GRADIENT], [PROBS], [CAPTURE]]
    found = await together(engine, [Job(inferences[0], each, tensors) for each in wanted])
    after = counted("batch_rows_sum", "coalesced_jobs_total")
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 2]
    expected = run_inference(subject.model, inferences[0], [CAPTURE, GRADIENT, PROBS])
    for captures, got in zip(wanted, found, strict=True):
        assert all(same(got[each], expected.raw_store.tensors[each]) for each in captures)


async def test_a_run_is_used_again(engine: Engine, inferences: list[PreparedInference]) -> None:
    first = await engine.run(Job(inferences[0], [CAPTURE, GRADIENT], tensors))
    before = counted("batch_rows_count")
    hits = sample("reuse_total", outcome="hit")
    second = await engine.run(Job(inferences[0], [GRADIENT], tensors))
    assert torch.equal(first[GRADIENT], second[GRADIENT])
    assert counted("batch_rows_count") == before
    assert sample("reuse_total", outcome="hit") == hits + 1
    await engine.run(Job(inferences[0], [PROBS], tensors))
    await engine.run(Job(replace(inferences[0], loss=None), [CAPTURE], tensors))
    assert counted("batch_rows_count") == [before[0] + 2]
    assert sample("reuse_bytes", device="cpu") > 0


async def test_nothing_is_kept_where_nothing_may_be(
    subject: Subject, inferences: list[PreparedInference]
) -> None:
    engine = Engine(subject.model, reuse_bytes=0)
    before = counted("batch_rows_count")
    for _ in range(2):
        await engine.run(Job(inferences[0], [CAPTURE], tensors))
    assert counted("batch_rows_count") == [before[0] + 2]
    assert sample("reuse_bytes", device="cpu") == 0
    engine.close()


async def test_what_was_derived_is_remembered_with_its_run(
    engine: Engine, inferences: list[PreparedInference]
) -> None:
    def derive(run: RunResult, check: Check) -> bool:
        known = run.memo.get("shape") is not None
        run.memo.put("shape", "a value", 100)
        return known

    job = Job(inferences[0], [CAPTURE], derive)
    assert [await engine.run(job) for _ in range(3)] == [False, True, True]
    assert await together(engine, [Job(inferences[1], [CAPTURE], derive)] * 2) == [False, True]


async def test_a_derivation_that_fails_does_so_alone(
    engine: Engine, inferences: list[PreparedInference]
) -> None:
    def fail(run: RunResult, check: Check) -> None:
        raise ZeroDivisionError("a defect")

    derivations = [tensors, fail, tensors, fail]
    found = await together(
        engine,
        [
            Job(each, [CAPTURE], derive)
            for each, derive in zip(inferences, derivations, strict=True)
        ],
    )
    assert [isinstance(each, ZeroDivisionError) for each in found] == [False, True, False, True]
    assert all(CAPTURE in found[index] for index in (0, 2))


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


async def test_a_row_that_cannot_be_run_fails_alone(
    engine: Engine, subject: Subject, inferences: list[PreparedInference]
) -> None:
    impossible = replace(inferences[1], tokens=(subject.model.shape.vocab_size + 7,))
    failed = outcomes("failed")
    jobs = [Job(each, [CAPTURE, GRADIENT], tensors) for each in [*inferences, impossible]]
    *found, error = await together(engine, jobs)
    assert isinstance(error, IndexError)
    assert all(set(each) == {CAPTURE, GRADIENT} for each in found)
    assert outcomes("failed") == failed + 1


async def test_a_caller_that_goes_during_the_run_is_not_derived(
    engine: Engine, inferences: list[PreparedInference]
) -> None:
    gate, derived = Gate(), []
    abandoned = outcomes("abandoned")
    async with held(engine, inferences[0]):
        first = asyncio.create_task(engine.run(Job(inferences[0], [CAPTURE], gate.derive)))
        await until(lambda: engine.waiting == 1)
        second = asyncio.create_task(
            engine.run(Job(inferences[1], [CAPTURE], lambda run, check: derived.append(1)))
        )
        await until(lambda: engine.waiting == 2)
    # Both have run by now; the first is being derived.
    await begun(gate)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.release.set()
    assert await first == "done"
    await engine.run(Job(inferences[2], [CAPTURE], tensors))
    assert not derived
    assert outcomes("abandoned") == abandoned + 1


async def test_a_job_whose_time_is_over_is_dropped_at_the_next_batch(
    engine: Engine, inferences: list[PreparedInference]
) -> None:
    derived: list[int] = []

    async def late() -> None:
        enter_deadline(0.05)
        await engine.run(Job(inferences[1], [CAPTURE], lambda run, check: derived.append(1)))

    (before,) = counted("batch_rows_sum")
    async with held(engine, inferences[0]):
        task = asyncio.create_task(late())
        await until(lambda: engine.waiting == 1)
        await asyncio.sleep(0.1)
    with pytest.raises(DeadlineExceeded):
        await task
    assert not derived
    assert counted("batch_rows_sum") == [before + 1]


def exhausting(times: int) -> Callable[[RunResult, Check], str]:
    """A derivation that finds no memory so many times."""
    tried: list[int] = []

    def derive(run: RunResult, check: Check) -> str:
        tried.append(1)
        if len(tried) <= times:
            torch.empty(1 << 60)
        return "done"

    return derive


async def test_a_derivation_without_memory_is_tried_again_alone(
    engine: Engine, inferences: list[PreparedInference]
) -> None:
    (splits,) = counted("out_of_memory_splits_total")
    derivations = [exhausting(1), exhausting(0), exhausting(2), exhausting(0)]
    found = await together(
        engine,
        [
            Job(each, [CAPTURE], derive)
            for each, derive in zip(inferences, derivations, strict=True)
        ],
    )
    assert [found[index] for index in (0, 1, 3)] == ["done"] * 3
    assert isinstance(found[2], ResourceExhausted)
    assert found[2].reason == "OUT_OF_MEMORY"
    assert counted("out_of_memory_splits_total") == [splits + 2]
    assert await engine.run(Job(inferences[0], [CAPTURE], exhausting(0))) == "done"


async def test_derivations_of_a_batch_run_side_by_side(
    subject: Subject, inferences: list[PreparedInference]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine = Engine(subject.model)
        met = threading.Barrier(2)

        def meet(run: RunResult, check: Check) -> int:
            met.wait(20)
            return torch.get_num_threads()

        jobs = [Job(each, [CAPTURE], meet) for each in inferences]
        assert await together(engine, jobs) == [1] * 4
        # The same again from the runs that were kept.
        assert await together(engine, jobs) == [1] * 4
        alone = Job(inferences[0], [CAPTURE], lambda run, check: torch.get_num_threads())
        assert await engine.run(alone) == 2
        engine.close()
    finally:
        torch.set_num_threads(before)


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


async def test_many_jobs_of_all_kinds(
    engine: Engine, subject: Subject, inferences: list[PreparedInference]
) -> None:
    wanted = [[CAPTURE], [GRADIENT, CAPTURE], [PROBS], [PROBS, GRADIENT]]
    jobs = [(inference, captures) for inference in inferences for captures in wanted] * 3
    found = await asyncio.gather(
        *(engine.run(Job(inference, captures, tensors)) for inference, captures in jobs)
    )
    for (inference, captures), got in zip(jobs, found, strict=True):
        alone = run_inference(subject.model, inference, captures).raw_store.tensors
        assert all(same(got[target], alone[target]) for target in captures)
