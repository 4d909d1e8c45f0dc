"""The soak, shortly: it reads in every way, and nothing unexpected is answered or logged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.soak import EXPECTED_CODES, soak

HEADROOM_BYTES = 32 * 2**20


@pytest.mark.timeout(300)
async def test_the_service_keeps_its_size_over_reads_of_all_kinds(tmp_path: Path, npm: str) -> None:
    soaked = await soak(5_000, tmp_path)
    assert soaked.problems == []
    kinds = {kind for kind, _ in soaked.outcomes}
    assert set(EXPECTED_CODES) < kinds
    assert sum(soaked.outcomes.values()) == 5_000
    # While the caches fill it may still grow a little; `make soak-records` looks closer.
    assert soaked.growth_bytes() < HEADROOM_BYTES
