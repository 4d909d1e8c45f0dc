"""Jobs that run together: shared runs, runs used again, and what fails or ends alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.scalars.engine.queueing import BatchLimits
from services.scalars.engine.worker import Check, Engine, Job
from services.scalars.model.subject import Subject, load_subject
from services.scalars.passes.inference import PreparedInference, RunResult, run_inference
from shared.errors import DeadlineExceeded, ResourceExhausted
from shared.rpc.context import enter_deadline
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_gates import CAPTURE, Gate, begun, outcomes, sample, until
from tests.unit.scalars_jobs import GRADIENT, PROBS, held, inferences_of, tensors, together


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
