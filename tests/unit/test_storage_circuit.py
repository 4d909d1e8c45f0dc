"""When a store that fails is left alone."""

from __future__ import annotations

from services.records.storage.circuit import (
    FAILURES_IN_A_ROW,
    PAUSE_SECONDS,
    Admission,
    Circuit,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def failing(clock: Clock, changes: list[bool] | None = None) -> Circuit:
    circuit = Circuit(clock=clock, on_change=(changes if changes is not None else []).append)
    for _ in range(FAILURES_IN_A_ROW):
        assert circuit.enter() is Admission.GRANTED
        circuit.failed()
    return circuit


def test_single_failures_change_nothing() -> None:
    circuit = Circuit()
    for _ in range(10 * FAILURES_IN_A_ROW):
        circuit.failed()
        assert circuit.enter() is Admission.GRANTED
        circuit.succeeded()


def test_after_failures_in_a_row_one_request_a_pause_is_let_through() -> None:
    clock = Clock()
    circuit = failing(clock)
    assert not circuit.admits()
    for _ in range(3):
        assert circuit.enter() is Admission.REFUSED
        clock.now += PAUSE_SECONDS
        assert circuit.admits()
        assert circuit.enter() is Admission.TRIAL
        assert not circuit.admits(), "the one before may still hang"
        circuit.failed()


def test_a_trial_that_failed_late_is_not_sent_again_at_once() -> None:
    clock = Clock()
    circuit = failing(clock)
    clock.now += PAUSE_SECONDS
    assert circuit.enter() is Admission.TRIAL
    clock.now += 2 * PAUSE_SECONDS
    circuit.failed()
    assert circuit.enter() is Admission.REFUSED
    clock.now += PAUSE_SECONDS
    assert circuit.enter() is Admission.TRIAL


def test_the_first_answer_lets_all_through() -> None:
    clock, changes = Clock(), list[bool]()
    circuit = failing(clock, changes)
    circuit.failed()
    circuit.succeeded()
    assert changes == [True, False]
    assert {circuit.enter() for _ in range(10)} == {Admission.GRANTED}
    circuit.failed()
    assert circuit.admits()
