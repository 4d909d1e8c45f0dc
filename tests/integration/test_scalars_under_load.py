"""Deadlines, cancellation, shedding and memory of the derived-scalars service, provoked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import neuropil
from neuropil.errors import translated
from neuropil.scalars import v1 as scalars
from tests.integration.scalars_under_load import Call, Served, request, service

LONG = 400
"""Tokens of a prompt that the device is busy with while a test does something."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that runs one inference at a time, and lets two more wait."""
    with service(tmp_path_factory.mktemp("one"), rows=1, queue=2) as running:
        running.send(request(4)).result()
        yield running


def ends(call: Call) -> neuropil.NeuropilError:
    """What a call fails with."""
    with pytest.raises(neuropil.NeuropilError) as caught, translated():
        call.result()
    return caught.value


def answers(call: Call) -> bool:
    """Whether a call has an answer in the end."""
    with translated():
        response: scalars.DeriveComponentResponse = call.result()
    return bool(response.scalars.activations)


def busy(served: Served) -> Call:
    """A long call whose run has begun."""
    begun = served.metric("batch_rows_count")
    call = served.send(request(LONG))
    served.until("batch_rows_count", begun + 1)
    return call


def test_a_call_whose_time_ends_during_its_run(served: Served) -> None:
    started = time.perf_counter()
    assert answers(served.send(request(LONG)))
    seconds = time.perf_counter() - started
    abandoned, done = served.jobs("abandoned"), served.jobs("done")
    call = served.send(request(LONG), timeout=seconds / 4)
    assert ends(call).code == "DEADLINE_EXCEEDED"
    served.until('jobs_total{outcome="abandoned"}', abandoned + 1)
    assert answers(served.send(request(4)))
    assert served.jobs("done") == done + 1


def test_a_call_whose_time_ends_in_the_queue_never_runs(served: Served) -> None:
    first = busy(served)
    abandoned, rows = served.jobs("abandoned"), served.metric("batch_rows_sum")
    call = served.send(request(5), timeout=0.05)
    assert ends(call).code == "DEADLINE_EXCEEDED"
    served.until('jobs_total{outcome="abandoned"}', abandoned + 1)
    served.until("jobs_waiting", 0)
    assert not first.done()
    assert answers(first)
    assert served.metric("batch_rows_sum") == rows


def test_a_call_that_is_cancelled_in_the_queue_leaves_it(served: Served) -> None:
    first = busy(served)
    abandoned, rows = served.jobs("abandoned"), served.metric("batch_rows_sum")
    call = served.send(request(5))
    served.until("jobs_waiting", 1)
    call.cancel()
    served.until("jobs_waiting", 0)
    assert served.jobs("abandoned") == abandoned + 1
    assert not first.done()
    assert answers(first)
    assert served.metric("batch_rows_sum") == rows


def test_a_call_that_is_cancelled_during_its_run_is_not_derived(served: Served) -> None:
    abandoned, done = served.jobs("abandoned"), served.jobs("done")
    busy(served).cancel()
    served.until('jobs_total{outcome="abandoned"}', abandoned + 1)
    assert answers(served.send(request(4)))
    assert served.jobs("done") == done + 1


def test_a_full_queue_sheds_and_says_when_to_try_again(served: Served) -> None:
    first, shed = busy(served), served.jobs("shed")
    waiting = [served.send(request(n_tokens)) for n_tokens in (5, 6)]
    served.until("jobs_waiting", 2)
    error = ends(served.send(request(7)))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert error.metadata == {"limit": "2"}
    assert error.retry_after_seconds is not None
    assert 0 < error.retry_after_seconds <= 30
    assert served.jobs("shed") == shed + 1
    assert all(answers(each) for each in [first, *waiting])
    assert answers(served.send(request(7)))


def test_what_no_device_could_hold_is_refused_at_once(served: Served) -> None:
    rows = served.metric("batch_rows_sum")
    error = ends(served.send(request(8192)))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE")
    assert int(error.metadata["estimated_bytes"]) > int(error.metadata["limit_bytes"]) > 0
    assert error.retry_after_seconds is None
    assert served.metric("batch_rows_sum") == rows


def test_memory_that_is_too_little_for_a_batch_splits_it(tmp_path: Path) -> None:
    """A real limit on the process: one of the prompts fits under it, all together do not."""
    prompts = [request(LONG - 1 - number) for number in range(14)]
    with service(tmp_path, rows=16, tokens=100_000, megabytes=100_000) as running:
        running.send(request(4)).result()
        running.limit_memory(600 << 20)
        # Long enough that all the others are there when it ends.
        first = busy(running)
        calls = [running.send(each) for each in prompts]
        running.until("jobs_waiting", len(calls))
        assert all(answers(each) for each in [first, *calls])
        assert running.metric("out_of_memory_splits_total") > 0
        assert running.jobs("out_of_memory") == 0

        # One that does not fit by itself fails, and the process goes on.
        running.limit_memory(50 << 20)
        error = ends(running.send(request(3 * LONG)))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")
        assert running.jobs("out_of_memory") == 1
        assert answers(running.send(request(8)))
        running.lift_memory_limit()
        assert answers(running.send(request(LONG)))
