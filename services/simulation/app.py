"""Puts the simulation service together from a deployment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from neuropil.channel import MEBIBYTE
from neuropil.records.v1 import RecordReaderStub
from neuropil.simulation import v1
from services.simulation.bulk.run import BulkRunner
from services.simulation.bulk_scoring import BulkScorer
from services.simulation.calibration.calibrations import CalibrationKind
from services.simulation.data_plane import SimulationPlane
from services.simulation.explaining.registry import ExplainerRegistry
from services.simulation.scoring.record_source import RecordSource
from services.simulation.service import SimulationService
from services.simulation.simulators.registry import SimulatorRegistry
from services.simulation.state.store import StateStore, open_state
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
        ConfigurationError: a simulator or the place for state can't be used as configured.
    """
    simulators = simulators or SimulatorRegistry.from_deployment(deployment)
    explainers = ExplainerRegistry.from_deployment(deployment, simulators)
    megabytes = deployment.limits.message_megabytes
    state = _open_state(deployment)
    channel = open_service_channel(deployment.services.records, message_megabytes=megabytes)
    records = RecordReaderStub(channel)
    plane = SimulationPlane(
        simulators,
        explainers,
        RecordSource(records),
        state,
        default_calibration=CalibrationKind(deployment.calibration),
        max_result_bytes=megabytes * MEBIBYTE,
    )
    service = SimulationService(plane, BulkScorer(plane, BulkRunner(state), records))
    simulators.start()
    try:
        yield [RpcService(SERVICE, service)]
    finally:
        await simulators.close()
        await channel.close()
        if state is not None:
            await state.close()


def _open_state(deployment: Deployment) -> StateStore | None:
    if deployment.simulation_state is None:
        return None
    return open_state(deployment.simulation_state, deployment.storage)
