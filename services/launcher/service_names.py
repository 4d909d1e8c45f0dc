"""Names of the services that the launcher runs, and where they listen unless told otherwise."""

from __future__ import annotations

from enum import StrEnum

from shared.settings import Deployment


class ServiceName(StrEnum):
    """A service that can be run."""

    RECORDS = "records"
    SCALARS = "scalars"
    SIMULATION = "simulation"
    GATEWAY = "gateway"


DEFAULT_HTTP_PORT = 8000
"""Where the gateway listens."""


def configured_port(deployment: Deployment, name: str) -> int:
    """Port of the address at which others find a service by the configuration."""
    if name == ServiceName.GATEWAY:
        return DEFAULT_HTTP_PORT
    address: str = getattr(deployment.services, name)
    return int(address.rsplit(":", 1)[1])
