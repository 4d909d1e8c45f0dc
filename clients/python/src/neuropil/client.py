"""A typed client of Neuropil's services, for scripts and notebooks."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from neuropil._records import RecordsClient
from neuropil._scalars import ScalarsClient
from neuropil._simulation import SimulationClient
from neuropil.channel import DEFAULT_MESSAGE_BYTES, MEBIBYTE, checked_address, open_channel
from neuropil.records.v1 import RecordReaderStub
from neuropil.scalars.v1 import DerivedScalarsStub
from neuropil.simulation.v1 import SimulationStub

_RECORDS_PER_MESSAGE = 64


class Client:
    """Connections to the three services; use it as a context manager, or close it.

    Connecting happens at the first call. A call that takes longer than `timeout` seconds fails
    with DEADLINE_EXCEEDED; a service that can't be reached is tried again within that time.
    Every failure is a `neuropil.NeuropilError`; a ValueError tells at once of an address without a
    port, or of a timeout that is not above 0.
    """

    def __init__(
        self,
        *,
        records: str = "127.0.0.1:50051",
        scalars: str = "127.0.0.1:50052",
        simulation: str = "127.0.0.1:50053",
        timeout: float = 60.0,
        message_bytes: int = DEFAULT_MESSAGE_BYTES,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout}")
        addresses = {"records": records, "scalars": scalars, "simulation": simulation}
        self._channels = [
            open_channel(checked_address(address, name), message_bytes=message_bytes)
            for name, address in addresses.items()
        ]
        # A message that holds several records has at most 1 MiB.
        self.records = RecordsClient(
            RecordReaderStub(self._channels[0]),
            timeout,
            records_per_message=_RECORDS_PER_MESSAGE if message_bytes >= MEBIBYTE else 1,
        )
        """Records and explanations."""
        self.scalars = ScalarsClient(DerivedScalarsStub(self._channels[1]), timeout)
        """Derived scalars."""
        self.simulation = SimulationClient(SimulationStub(self._channels[2]), timeout)
        """Simulation, calibration and scoring."""

    def close(self) -> None:
        """Close the connections; running calls fail with CANCELLED."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


connect = Client
"""`neuropil.connect(...)` reads better than `neuropil.Client(...)`; they are the same."""
