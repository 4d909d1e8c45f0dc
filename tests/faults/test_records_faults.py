"""Parts fail under load, shortly: `make faults-records` does the same for a minute each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.scenarios import SCENARIOS
from tests.faults.setting import run_scenario

SECONDS = 10.0


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "name", ["redis_killed", "redis_stopped", "store_killed", "store_slow", "replica_ends"]
)
async def test_no_guarantee_is_broken_while_a_part_fails(
    name: str, tmp_path: Path, npm: str
) -> None:
    report = await run_scenario(SCENARIOS[name], tmp_path, seconds=SECONDS, clients=64)
    assert report.problems == [], report.row()
    assert report.calm.rate > 0
