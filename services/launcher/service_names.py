"""Names of the services that the launcher runs, and where they listen unless told otherwise."""

from __future__ import annotations

from enum import StrEnum


class ServiceName(StrEnum):
    """A service that can be run."""

    RECORDS = "records"
    SCALARS = "scalars"
    SIMULATION = "simulation"
    GATEWAY = "gateway"


DEFAULT_PORTS = {
    ServiceName.RECORDS: 50051,
    ServiceName.SCALARS: 50052,
    ServiceName.SIMULATION: 50053,
    ServiceName.GATEWAY: 8000,
}
