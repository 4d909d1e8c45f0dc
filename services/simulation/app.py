"""Puts the simulation service together from a deployment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from neuropil.records.v1 import RecordReaderStub
from neuropil.simulation import v1
from services.simulation.calibration.calibrations import CalibrationKind
from services.simulation.scoring.record_source import RecordSource
from services.simulation.service import SimulationService
from services.simulation.simulators.registry import SimulatorRegistry
from shared.rpc.channel import open_service_channel
from shared.rpc.server import RpcService
from shared.settings import Deployment

SERVICE = v1.DESCRIPTOR.services_by_name["Simulation"]


@asynccontextmanager
async def simulation_services(
    deployment: Deployment, simulators: SimulatorRegistry | None = None
) -> AsyncIterator[Sequence[RpcService]]:
    """The simulators of the deployment, or those given; they load in the background, and are
    closed at the end.

    Raises:
        ConfigurationError: a simulator of a kind that this release doesn't have.
    """
    simulators = simulators or SimulatorRegistry.from_deployment(deployment)
    megabytes = deployment.limits.message_megabytes
    channel = open_service_channel(deployment.services.records, message_megabytes=megabytes)
    service = SimulationService(
        simulators,
        RecordSource(RecordReaderStub(channel)),
        default_calibration=CalibrationKind(deployment.calibration),
        message_megabytes=megabytes,
    )
    simulators.start()
    try:
        yield [RpcService(SERVICE, service)]
    finally:
        await simulators.close()
        await channel.close()
