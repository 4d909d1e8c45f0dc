"""Which jobs of a queue run together, and how long a free device waits for company."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scalars.engine.jobs import Job, Waiting
from services.scalars.engine.queueing import BatchLimits, JobQueue, form_batch
from services.scalars.engine.reuse import run_key
from services.scalars.model.locations import ActivationLocationType, PassType
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import PreparedInference

PLENTY = 1 << 40


def waiting(
    *tokens: int,
    backward: bool = False,
    run_bytes: int = 10,
    extra_bytes: int = 0,
    deadline: float | None = None,
    captures: Sequence[RawTensorId] = (),
) -> Waiting:
    """A job whose run takes `run_bytes`, and as much again for each tensor that is captured."""
    prepared = PreparedInference(tokens, (), None)
    future: Any = None
    return Waiting(
        job=Job(prepared, captures, lambda run, check: None, extra_bytes),
        key=run_key(prepared),
        backward=backward,
        estimated=lambda captured: run_bytes * (1 + len(captured)),
        loop=future,
        future=future,
        deadline=deadline,
    )


def test_a_batch_is_bounded_in_rows_tokens_and_bytes() -> None:
    jobs = [waiting(number, 1, 2, extra_bytes=5) for number in range(10)]
    assert form_batch(jobs, BatchLimits(rows=4), PLENTY) == jobs[:4]
    assert form_batch(jobs, BatchLimits(tokens=8), PLENTY) == jobs[:2]
    assert form_batch(jobs, BatchLimits(n_bytes=46), PLENTY) == jobs[:3]
    assert form_batch(jobs, BatchLimits(), 46) == jobs[:3]


def test_what_is_over_a_limit_runs_alone() -> None:
    large, small = waiting(*range(9), run_bytes=100), waiting(1)
    assert form_batch([large, small], BatchLimits(tokens=8), PLENTY) == [large]
    assert form_batch([large, small], BatchLimits(n_bytes=50), PLENTY) == [large]
    assert form_batch([small, large], BatchLimits(tokens=8), PLENTY) == [small]


def test_what_has_no_room_now_lets_others_pass() -> None:
    large, small = waiting(1, run_bytes=100), waiting(2)
    assert form_batch([large, small], BatchLimits(), 50) == [small]
    assert form_batch([large], BatchLimits(), 50) == []


def test_passes_are_not_mixed_but_an_inference_is_shared() -> None:
    forward, backward = waiting(1), waiting(2, backward=True)
    more = [waiting(3), waiting(4, backward=True)]
    assert form_batch([forward, backward, *more], BatchLimits(), PLENTY) == [forward, more[0]]
    same = waiting(2)
    assert form_batch([backward, forward, same], BatchLimits(rows=1), PLENTY) == [backward, same]
    # The gradient would need a pass that its batch has not got.
    assert form_batch([same, backward], BatchLimits(), PLENTY) == [same]


def test_a_job_that_joins_costs_what_it_alone_captures() -> None:
    target = [
        RawTensorId(ActivationLocationType.MLP_POST_ACT, at, PassType.FORWARD) for at in range(3)
    ]
    few, more, same = (waiting(1, captures=target[:n]) for n in (1, 3, 3))
    other = waiting(2)
    limits = BatchLimits(n_bytes=39)
    assert few.run_bytes == 20
    # Together they take 40: too much, and so would be all of them with the one that is alone.
    assert form_batch([few, more, other], limits, PLENTY) == [few, other]
    assert form_batch([few, more], BatchLimits(), 39) == [few]
    # What is captured for one costs nothing for another, but for what is derived from it.
    assert form_batch([few, more, same], BatchLimits(n_bytes=40), PLENTY) == [few, more, same]
    last = waiting(1, captures=target[1:], extra_bytes=5)
    assert form_batch([more, last], BatchLimits(n_bytes=45), PLENTY) == [more, last]
    assert form_batch([more, last], BatchLimits(n_bytes=44), PLENTY) == [more]


Description = tuple[int, int, bool, int]


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 5), st.booleans(), st.integers(0, 30)),
        max_size=20,
    ),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(1, 60),
)
def test_every_job_runs_once_and_the_oldest_first(
    described: list[Description], rows: int, tokens: int, n_bytes: int
) -> None:
    left = [
        waiting(*[which] * length, backward=backward, run_bytes=size)
        for length, which, backward, size in described
    ]
    limits = BatchLimits(rows=rows, tokens=tokens, n_bytes=n_bytes)
    total = len(left)
    served = 0
    while left:
        batch = form_batch(left, limits, PLENTY)
        assert batch[0] is left[0]
        runs = {each.key: each for each in reversed(batch)}
        if len(runs) > 1:
            assert len(runs) <= rows
            assert sum(each.n_tokens for each in runs.values()) <= tokens
            assert sum(each.run_bytes for each in runs.values()) <= n_bytes
        # Where one has a backward pass, so has the run of every other.
        assert len({each.backward for each in runs.values()}) == 1
        left = [each for each in left if all(each is not other for other in batch)]
        served += len(batch)
    assert served == total


def take(queue: JobQueue, *, at_hand: set[int] = frozenset()) -> list[Waiting]:  # type: ignore[assignment]
    return queue.take(lambda each: each.job.prepared.tokens[0] in at_hand, lambda: PLENTY)


def test_what_needs_no_run_goes_first_and_alone() -> None:
    queue = JobQueue(BatchLimits(window_seconds=60), limit=10)
    queue.ran(1e9)
    jobs = [waiting(number) for number in range(3)]
    for each in jobs:
        queue.put(each)
    assert take(queue, at_hand={1}) == [jobs[1]]
    assert len(queue) == 2


def test_what_needs_no_run_passes_the_oldest_by_once() -> None:
    queue = JobQueue(BatchLimits(), limit=10)
    cold = [waiting(number) for number in range(2)]
    for each in cold:
        queue.put(each)
    for number in range(2):
        hot = waiting(7)
        queue.put(hot)
        assert take(queue, at_hand={7}) == ([hot] if number == 0 else [hot, *cold])
    assert len(queue) == 0


def test_what_nobody_waits_for_is_handed_out_to_be_dropped() -> None:
    queue = JobQueue(BatchLimits(), limit=10)
    jobs = [waiting(1), waiting(2, deadline=time.monotonic() - 1), waiting(3)]
    jobs[0].abandoned.set()
    for each in jobs:
        queue.put(each)
    assert take(queue) == jobs[:2]
    assert take(queue) == jobs[2:]


def test_a_free_device_waits_for_company() -> None:
    queue = JobQueue(BatchLimits(rows=3, window_seconds=60), limit=10)
    # Runs take so long that the wait would not be noticed.
    queue.ran(1e9)
    taken: list[list[Waiting]] = []
    jobs = [waiting(number) for number in range(3)]
    queue.put(jobs[0])
    worker = threading.Thread(target=lambda: taken.append(take(queue)))
    worker.start()
    queue.put(jobs[1])
    worker.join(0.2)
    assert worker.is_alive()
    queue.put(jobs[2])
    worker.join(20)
    assert taken == [jobs]


def test_it_does_not_wait_longer_once_all_are_back() -> None:
    queue = JobQueue(BatchLimits(rows=3, window_seconds=60), limit=10)
    for number in range(3):
        queue.put(waiting(number))
    assert len(take(queue)) == 3
    queue.ran(1e9)
    for number in range(3):
        queue.put(waiting(number))
    assert len(take(queue)) == 3


def test_it_does_not_wait_where_runs_are_short() -> None:
    queue = JobQueue(BatchLimits(window_seconds=3600), limit=10)
    queue.ran(0.001)
    queue.put(waiting(1))
    assert len(take(queue)) == 1


def test_a_job_waits_for_memory() -> None:
    queue = JobQueue(BatchLimits(), limit=10)
    asked: list[int] = []

    def available() -> int:
        asked.append(1)
        return 0 if len(asked) < 3 else 100

    large = waiting(1, run_bytes=50)
    queue.put(large)
    assert queue.take(lambda each: False, available) == [large]
    assert len(asked) == 3


def test_a_full_or_closed_queue_takes_nothing() -> None:
    queue = JobQueue(BatchLimits(), limit=2)
    jobs = [waiting(number) for number in range(3)]
    assert [queue.put(each) for each in jobs] == [True, True, False]
    assert queue.remove(jobs[0])
    assert not queue.remove(jobs[0])
    assert queue.put(jobs[2])
    assert queue.close() == jobs[1:]
    assert queue.closed
    assert not queue.put(jobs[0])
    assert take(queue) == []


def test_closing_ends_a_worker_that_waits() -> None:
    for jobs in ([], [waiting(1)]):
        queue = JobQueue(BatchLimits(window_seconds=60), limit=2)
        queue.ran(1e9)
        taken: list[list[Waiting]] = []
        worker = threading.Thread(target=lambda q=queue, t=taken: t.append(take(q)))
        worker.start()
        for each in jobs:
            queue.put(each)
        queue.close()
        worker.join(20)
        assert taken == [[]]


def test_when_to_try_again_follows_from_the_queue() -> None:
    queue = JobQueue(BatchLimits(rows=2), limit=100)
    queue.ran(1.0)
    assert queue.retry_after_seconds() == pytest.approx(1.0)
    for number in range(8):
        queue.put(waiting(number))
    assert queue.retry_after_seconds() == pytest.approx(5.0)
    queue.ran(1e6)
    assert queue.retry_after_seconds() == 30.0
