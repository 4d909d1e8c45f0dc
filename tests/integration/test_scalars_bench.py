"""The measurement of derived scalars runs, and holds what a reader needs."""

from __future__ import annotations

import pytest

from tests.load import scalars_bench


@pytest.mark.timeout(300)
async def test_derived_scalars_are_measured() -> None:
    text = "\n".join(await scalars_bench.measure(scale=0.2))
    assert text.count("### ") == len(scalars_bench.ROWS)
    assert text.count(" F | <= ") == 3
    assert text.count(" FB | <= ") == 5
    assert text.count(" x | >= ") == 3
    assert text.count(" ms | <= 20 ") == 3
    assert text.count(" GB | <= ") == 1
