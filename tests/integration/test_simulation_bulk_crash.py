"""A bulk run over real processes whose simulation service is killed; `make bulk-crash` is long."""

from __future__ import annotations

from pathlib import Path

from tests.faults.bulk_crash import CHEAP, crash


def test_a_killed_service_loses_nothing_and_repeats_only_what_was_running(tmp_path: Path) -> None:
    report = crash(tmp_path, components=20, kills=1, concurrency=3, module=CHEAP)
    assert list(report.problems()) == []
    assert len(report.told_before_a_kill) >= 10
    assert report.calls_of_simulator is not None
    assert report.calls_of_simulator >= 20
