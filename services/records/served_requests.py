"""Requests for records that were served before, by their bytes."""

from __future__ import annotations

from neuropil.records import v1
from services.records.components import Component, View
from services.records.reading import RecordReader

MAX_REQUESTS = 16_384
MAX_REQUEST_BYTES = 1024


class ServedRequests:
    """Finds the reply to a request in memory without parsing it.

    Knows up to `MAX_REQUESTS` requests of one method of up to `MAX_REQUEST_BYTES`; the oldest leave
    first. What a request names does not change while the service runs.
    """

    def __init__(self, reader: RecordReader) -> None:
        self._reader = reader
        self._keys: dict[bytes, str] = {}

    def served(
        self,
        request: v1.GetTokenRecordRequest | v1.GetTokenPairRecordRequest,
        component: Component,
        view: View,
    ) -> None:
        """Note a request that is valid, as it was answered."""
        # A client that writes the same request in other bytes is only not found.
        data = request.SerializeToString(deterministic=True)
        if len(data) > MAX_REQUEST_BYTES or data in self._keys:
            return
        if len(self._keys) >= MAX_REQUESTS:
            del self._keys[next(iter(self._keys))]
        self._keys[data] = self._reader.first_key(component, request.datasets, view)

    def reply(self, data: bytes) -> bytes | None:
        """The reply to a serialized request, where the first of its datasets has it in memory."""
        key = self._keys.get(data)
        return None if key is None else self._reader.kept_record(key)
