"""The measurements run at all, and hold what a reader needs."""

from __future__ import annotations

import pytest

from tests.load import gateway_bench, records_bench, redis_client_bench


async def test_the_record_reader_is_measured() -> None:
    text = "\n".join(await records_bench.measure(scale=0.01))
    for row in (
        "bare echo of the same size",
        "echo behind the interceptors",
        "from memory",
        "from Redis",
        "cold, from a local file",
    ):
        assert text.count(f"| {row} |") == 2
    assert text.count("| pass |") + text.count("| miss |") == 11


@pytest.mark.timeout(300)
async def test_the_gateway_is_measured() -> None:
    text = "\n".join(await gateway_bench.measure(scale=0.01))
    assert text.count("records cold") == 2
    assert "beside one client" in text
    assert text.count("| pass |") + text.count("| miss |") == 12


async def test_clients_of_redis_are_measured() -> None:
    text = "\n".join(await redis_client_bench.measure(seconds=0.001))
    for name in redis_client_bench.CLIENTS:
        assert text.count(f"| {name} |") == 4
