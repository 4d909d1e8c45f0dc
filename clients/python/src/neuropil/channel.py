"""Channels to Neuropil's services, built in one place."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import grpc
import grpc.aio

MEBIBYTE = 1 << 20

DEFAULT_MESSAGE_BYTES = 16 * MEBIBYTE

SERVICES = (
    "neuropil.records.v1.RecordReader",
    "neuropil.scalars.v1.DerivedScalars",
    "neuropil.simulation.v1.Simulation",
)


# As gRPC takes them; without a port it would ask port 443.
_PLACE = r"(\[[^\]]+\]|[^:/,\[\]\s]+):\d{1,5}"
_ADDRESS = re.compile(
    rf"(unix|unix-abstract|xds):\S+|(dns:(//[^/\s]*/)?)?{_PLACE}|ipv[46]:{_PLACE}(,{_PLACE})*"
)


def checked_address(address: str, name: str = "address") -> str:
    """The address of a service as it is: HOST:PORT, or another target that gRPC knows.

    Raises:
        ValueError: where it has no port, or is a URL of HTTP, naming it by `name`.
    """
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"{name} is {address!r}; an address is HOST:PORT, as 127.0.0.1:50051")
    return address


def channel_options(message_bytes: int = DEFAULT_MESSAGE_BYTES) -> list[tuple[str, int | str]]:
    """Options of every channel: limits, keepalive, balancing over all addresses, retries.

    Every call of the contract may be repeated, so a call that a server could not take
    (UNAVAILABLE) is tried up to four times within its deadline.
    """
    service_config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        # A server that is about to end says so first: calls go to the others from then on.
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [
            {
                "name": [{"service": service} for service in SERVICES],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # gRPC's own pause between attempts to connect grows to two minutes, long after a service
        # that was restarted is back.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.service_config", json.dumps(service_config)),
    ]


def open_channel(address: str, *, message_bytes: int = DEFAULT_MESSAGE_BYTES) -> grpc.Channel:
    """Open a channel for threads. It connects when first used."""
    return grpc.insecure_channel(address, options=channel_options(message_bytes))


def open_aio_channel(
    address: str,
    *,
    message_bytes: int = DEFAULT_MESSAGE_BYTES,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """Open a channel for asyncio; must be called in a running loop."""
    return grpc.aio.insecure_channel(
        address, options=channel_options(message_bytes), interceptors=interceptors
    )
