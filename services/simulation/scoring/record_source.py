"""The true activations of a recorded component, from the record reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuropil.errors import atranslated
from neuropil.records import v1 as records
from neuropil.simulation import v1
from services.simulation.convert.messages import labeled_sequences
from services.simulation.scoring.labeled_sequences import ScoringSplit

if TYPE_CHECKING:
    from neuropil.records.v1.records_service_pb2_grpc import RecordReaderAsyncStub


class RecordSource:
    """Reads records over gRPC; the caller's deadline and request id go along."""

    def __init__(self, stub: RecordReaderAsyncStub) -> None:
        self._stub = stub

    async def split(self, source: v1.RecordedComponent) -> ScoringSplit:
        """The calibration and validation sequences of the component's record.

        Raises:
            neuropil.errors.NeuropilError: as the record reader answers: NOT_FOUND, DATA_LOSS,
                INVALID_ARGUMENT for a component that is recorded by token pair, UNAVAILABLE.
        """
        request = records.GetTokenRecordRequest(
            component=source.component, datasets=source.datasets
        )
        async with atranslated():
            record = await self._stub.GetTokenRecord(request)
        return ScoringSplit.from_record(
            labeled_sequences(record.top_sequences, "record.top_sequences"),
            labeled_sequences(record.random_sequences, "record.random_sequences"),
            record.dataset,
        )
