"""A client that was closed."""

from __future__ import annotations

import pytest

import neuropil


def test_a_closed_client_says_so() -> None:
    client = neuropil.connect()
    client.close()
    with pytest.raises(neuropil.NeuropilError, match="the client is closed") as caught:
        client.records.datasets()
    assert caught.value.code == "CANCELLED"
    client.close()


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be more than 0"):
        neuropil.connect(timeout=timeout)
