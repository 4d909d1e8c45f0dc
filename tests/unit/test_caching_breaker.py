"""The circuit breaker as a state machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.records.caching.breaker import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    SLOW_IN_A_ROW,
    CircuitBreaker,
    State,
)

EVENTS = ("success", "slow", "failure", "begin", "probe good", "probe bad", "wait")


def report(breaker: CircuitBreaker, event: str) -> None:
    match event:
        case "success":
            breaker.succeeded()
        case "slow":
            breaker.succeeded(slow=True)
        case "failure":
            breaker.failed()
        case "begin":
            breaker.begin_probe()
        case "probe good":
            breaker.probe_succeeded()
        case "probe bad":
            breaker.probe_failed()


@given(st.lists(st.sampled_from(EVENTS), max_size=60))
def test_only_its_own_event_leads_out_of_a_state(events: list[str]) -> None:
    now, slow, told = 0.0, 0, [State.CLOSED]
    breaker = CircuitBreaker(clock=lambda: now, on_change=told.append)
    expected = State.CLOSED
    for event in events:
        now += 11.0 if event == "wait" else 0.01
        if expected is State.CLOSED:
            slow = slow + 1 if event == "slow" else 0 if event == "success" else slow
            if event == "failure" or slow == SLOW_IN_A_ROW:
                expected, slow = State.OPEN, 0
        elif expected is State.OPEN and event == "begin":
            expected = State.HALF_OPEN
        elif expected is State.HALF_OPEN and event.startswith("probe"):
            expected = State.CLOSED if event == "probe good" else State.OPEN
        report(breaker, event)
        assert breaker.state is expected is told[-1]
        assert breaker.closed == (expected is State.CLOSED)
        assert FIRST_PAUSE_SECONDS <= breaker.pause_seconds <= LONGEST_PAUSE_SECONDS


def test_pauses_grow_to_a_bound_and_begin_anew_after_a_good_time() -> None:
    now = 0.0
    breaker = CircuitBreaker(clock=lambda: now)
    assert breaker.failed()
    assert not breaker.failed()
    pauses = []
    for _ in range(8):
        pauses.append(breaker.pause_seconds)
        breaker.begin_probe()
        breaker.probe_failed()
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    breaker.begin_probe()
    breaker.probe_succeeded()
    now += 1
    breaker.failed()
    assert breaker.pause_seconds == LONGEST_PAUSE_SECONDS
    breaker.begin_probe()
    breaker.probe_succeeded()
    now += 100
    breaker.failed()
    assert breaker.pause_seconds == FIRST_PAUSE_SECONDS
