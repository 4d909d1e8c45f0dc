"""Which addresses a client takes."""

from __future__ import annotations

import pytest

import neuropil
from neuropil.channel import checked_address


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:50051",
        "localhost:1",
        "records.example.org:50051",
        "[::1]:50051",
        "dns:records:50051",
        "dns:///records.example.org:50051",
        "dns://10.0.0.1/records:50051",
        "ipv4:10.0.0.1:50051,10.0.0.2:50051",
        "ipv6:[::1]:50051,[::2]:50051",
        "unix:/run/records.sock",
        "unix:///run/records.sock",
    ],
)
def test_addresses_that_grpc_knows(address: str) -> None:
    assert checked_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "localhost:",
        ":50051",
        "::1",
        "http://127.0.0.1:50051",
        "https://records.example.org",
        "127.0.0.1:http",
        "127.0.0.1:50051/",
        " 127.0.0.1:50051",
        "10.0.0.1:50051,10.0.0.2:50051",
        "dns:///records",
    ],
)
def test_others_are_refused_when_connecting(address: str) -> None:
    with pytest.raises(ValueError, match=r"scalars is .*HOST:PORT"):
        neuropil.connect(scalars=address)
