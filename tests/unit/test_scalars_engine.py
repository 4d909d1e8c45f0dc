"""The worker: what runs together, a bounded queue, callers that go away, and what fails."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from services.scalars.engine import admission
from services.scalars.engine.admission import free_bytes, is_out_of_memory
from services.scalars.engine.worker import Check, Engine, Job
from services.scalars.model.subject import Subject, load_subject
from services.scalars.passes.inference import (
    InferenceSpec,
    PreparedInference,
    RunResult,
    prepare_inference,
)
from shared.errors import ResourceExhausted, Unavailable
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_gates import CAPTURE, Gate, begun, outcomes, until


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("model"))
    return load_subject("tiny", str(path), "cpu")


@pytest.fixture
def engine(subject: Subject) -> Iterator[Engine]:
    made = Engine(subject.model, queue_limit=2)
    yield made
    made.close()


@pytest.fixture
def prepared(subject: Subject) -> PreparedInference:
    return prepare_inference(InferenceSpec("The cat"), subject.model, subject.tokenizer, "i")


async def test_results_and_errors_come_back(engine: Engine, prepared: PreparedInference) -> None:
    def shape(run: RunResult, check: Check) -> tuple[int, ...]:
        found = run.raw_store.get(CAPTURE.location, CAPTURE.pass_type)
        return tuple(found.activations_by_layer_index[0].shape)

    assert await engine.run(Job(prepared, [CAPTURE], shape)) == (len(prepared.tokens), 40)

    def fail(run: RunResult, check: Check) -> None:
        raise ZeroDivisionError("a defect")

    def exhaust(run: RunResult, check: Check) -> None:
        raise StopIteration

    with pytest.raises(ZeroDivisionError, match="a defect"):
        await engine.run(Job(prepared, [CAPTURE], fail))
    # No future takes it.
    with pytest.raises(RuntimeError, match="StopIteration"):
        async with asyncio.timeout(20):
            await engine.run(Job(prepared, [CAPTURE], exhaust))
    assert await engine.run(Job(prepared, [CAPTURE], shape)) == (len(prepared.tokens), 40)


async def test_a_result_is_not_kept_by_an_idle_worker(
    engine: Engine, prepared: PreparedInference
) -> None:
    result = await engine.run(Job(prepared, (), lambda run, check: np.zeros(3)))
    kept = weakref.ref(result)
    del result
    await until(lambda: kept() is None)


async def test_work_is_done_elsewhere_and_one_at_a_time(
    engine: Engine, prepared: PreparedInference
) -> None:
    running: list[str] = []

    def note(run: RunResult, check: Check) -> int:
        running.append(threading.current_thread().name)
        assert running.count("busy") == 0
        running.append("busy")
        torch.randn(50, 50) @ torch.randn(50, 50)
        running.remove("busy")
        return threading.get_ident()

    first, second = await asyncio.gather(
        *(engine.run(Job(prepared, [CAPTURE], note)) for _ in range(2))
    )
    assert first == second != threading.get_ident()


async def test_the_queue_is_bounded(engine: Engine, prepared: PreparedInference) -> None:
    gate = Gate()
    running = asyncio.create_task(engine.run(Job(prepared, [CAPTURE], gate.derive)))
    await begun(gate)
    waiting = [
        asyncio.create_task(engine.run(Job(prepared, [CAPTURE], lambda run, check: 1)))
        for _ in range(2)
    ]
    await until(lambda: engine.waiting == 2)
    shed = outcomes("shed")
    with pytest.raises(ResourceExhausted) as caught:
        await engine.run(Job(prepared, [CAPTURE], lambda run, check: 1))
    assert outcomes("shed") == shed + 1
    assert caught.value.reason == "QUEUE_FULL"
    assert 0 < (caught.value.retry_after_seconds or 0) <= 30
    gate.release.set()
    assert await running == "done"
    assert await asyncio.gather(*waiting) == [1, 1]


async def test_a_queued_job_whose_caller_has_gone_never_runs(
    engine: Engine, prepared: PreparedInference
) -> None:
    gate, ran = Gate(), []
    running = asyncio.create_task(engine.run(Job(prepared, [CAPTURE], gate.derive)))
    await begun(gate)
    queued = asyncio.create_task(
        engine.run(Job(prepared, [CAPTURE], lambda run, check: ran.append(1)))
    )
    await until(lambda: engine.waiting == 1)
    abandoned = outcomes("abandoned")
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    assert outcomes("abandoned") == abandoned + 1
    assert engine.waiting == 0
    gate.release.set()
    await running
    await engine.run(Job(prepared, [CAPTURE], lambda run, check: None))
    assert not ran


async def test_a_running_job_whose_caller_has_gone_ends_at_its_next_check(
    engine: Engine, prepared: PreparedInference
) -> None:
    gate, went_on = Gate(), []

    def derive(run: RunResult, check: Check) -> None:
        gate.derive(run, check)
        went_on.append(1)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await engine.run(Job(prepared, [CAPTURE], derive))
    gate.release.set()
    await engine.run(Job(prepared, [CAPTURE], lambda run, check: None))
    assert gate.begun.is_set()
    assert not went_on


async def test_what_is_too_large_is_refused_with_the_estimate(
    subject: Subject, prepared: PreparedInference
) -> None:
    engine = Engine(subject.model, memory_limit=1 << 20)
    job = Job(prepared, [CAPTURE], lambda run, check: None, extra_bytes=1 << 20)
    with pytest.raises(ResourceExhausted) as caught:
        await engine.run(job)
    assert caught.value.reason == "REQUEST_TOO_LARGE"
    assert int(caught.value.metadata["estimated_bytes"]) > 1 << 20
    assert caught.value.metadata["limit_bytes"] == str(1 << 20)
    await engine.run(Job(prepared, [CAPTURE], lambda run, check: None))
    engine.close()


@pytest.mark.parametrize(
    "exhaust",
    [
        lambda: torch.empty(1 << 60),
        lambda: (_ for _ in ()).throw(MemoryError()),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
    ],
    ids=["torch on the CPU", "Python", "torch on a GPU"],
)
async def test_running_out_of_memory_is_survived(
    engine: Engine, prepared: PreparedInference, exhaust: Callable[[], object]
) -> None:
    def derive(run: RunResult, check: Check) -> None:
        result = exhaust()
        if not isinstance(result, torch.Tensor):
            next(result)  # type: ignore[call-overload]

    with pytest.raises(ResourceExhausted) as caught:
        await engine.run(Job(prepared, [CAPTURE], derive))
    assert caught.value.reason == "OUT_OF_MEMORY"
    assert await engine.run(Job(prepared, [CAPTURE], lambda run, check: 1)) == 1


async def test_a_device_that_cannot_tell_its_memory_still_answers(
    engine: Engine, prepared: PreparedInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: torch.device) -> int:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(admission, "free_bytes", fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="device-side assert"):
            async with asyncio.timeout(20):
                await engine.run(Job(prepared, [CAPTURE], lambda run, check: 1))
    monkeypatch.undo()
    assert await engine.run(Job(prepared, [CAPTURE], lambda run, check: 1)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_nobody_waits_for_a_worker_that_ended(
    engine: Engine, prepared: PreparedInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "free_bytes", lambda device: [][0])
    for _ in range(2):
        with pytest.raises(Unavailable):
            async with asyncio.timeout(20):
                await engine.run(Job(prepared, [CAPTURE], lambda run, check: 1))


async def test_closing_ends_what_waits(subject: Subject, prepared: PreparedInference) -> None:
    engine, gate = Engine(subject.model), Gate()
    running = asyncio.create_task(engine.run(Job(prepared, [CAPTURE], gate.derive)))
    await begun(gate)
    waiting = asyncio.create_task(engine.run(Job(prepared, [CAPTURE], lambda run, check: 1)))
    await until(lambda: engine.waiting == 1)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    with pytest.raises(Unavailable):
        await waiting
    gate.release.set()
    assert await running == "done"
    await closing
    with pytest.raises(Unavailable):
        await engine.run(Job(prepared, [CAPTURE], lambda run, check: 1))


def test_what_counts_as_too_little_memory() -> None:
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert not is_out_of_memory(RuntimeError("a defect"))
    assert not is_out_of_memory(OSError(2, "No such file or directory"))


def test_free_memory_respects_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = free_bytes(torch.device("cpu"))
    assert everything > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(admission, "_CGROUP", tmp_path)
    assert free_bytes(torch.device("cpu")) == 480_000
    # What was read of files is given back.
    (tmp_path / "memory.stat").write_text("anon 1\nfile 300000\ninactive_file 250000\n")
    assert free_bytes(torch.device("cpu")) == 680_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 480_000
