"""The measurements and tables of simulation run at all, and hold what a reader needs."""

from __future__ import annotations

import pytest

from services.simulation.calibration.calibrations import CalibrationKind

pytestmark = pytest.mark.torch


def test_every_calibration_is_measured() -> None:
    from tests.load import simulation_bench

    lines = simulation_bench.speed(times=1)
    for kind in CalibrationKind:
        (row,) = (line for line in lines if line.startswith(f"| {kind} |"))
        assert row.count("pass") + row.count("miss") == 1
        assert row.count(" x") == 2


async def test_the_demo_is_tabulated() -> None:
    from tests.load import simulation_table

    lines = await simulation_table.measure(limit=2, kinds=("token_head",))
    medians = next(line for line in lines if line.startswith("| token_head |")).split(" | ")
    assert medians[1] == "100.0%"
    assert float(medians[2]) > 0.3
    assert float(medians[3]) < 0 < float(medians[4])
    assert sum(line.startswith("| 0/") for line in lines) == 2


def test_a_table_replaces_the_one_before() -> None:
    from tests.load.simulation_table import BEGIN, END, PAGE, written

    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    new = written(page, ["| new |"])
    assert "old" not in new
    assert new == written(new, ["| new |"])
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


async def test_coverage_is_tabulated() -> None:
    from tests.load.simulation_coverage import CASES, table

    lines = table(data_sets=5, population=1000)
    for case in CASES:
        assert sum(line.startswith(f"| {case.name} |") for line in lines) == 1
