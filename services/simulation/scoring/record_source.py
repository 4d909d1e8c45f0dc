"""The true activations of a recorded component, from the record reader."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from neuropil.common import v1 as common
from neuropil.errors import atranslated
from neuropil.names import DERIVED_SCALAR_TYPES
from neuropil.records import v1 as records
from neuropil.simulation import v1
from services.simulation.convert.arrays import labeled_sequences, labeled_token_pairs
from services.simulation.explaining.evidence import Evidence, TokenEvidence, TokenPairEvidence
from services.simulation.scoring.labeled_sequences import LabeledSequences, ScoringSplit
from services.simulation.scoring.labeled_token_pairs import LabeledTokenPairs, TokenPairSplit
from shared.formats.token_pairs import TOKEN_PAIR_TYPES

if TYPE_CHECKING:
    from neuropil.records.v1.records_service_pb2_grpc import RecordReaderAsyncStub

_WITH_QUANTILES = records.RecordView(include_quantile_samples=True)


def by_token_pair(component: common.ComponentId) -> bool:
    """Whether the component's activations are of token pairs, as those of an attention head."""
    return DERIVED_SCALAR_TYPES.name(component.derived_scalar_type) in TOKEN_PAIR_TYPES


class RecordSource:
    """Reads records over gRPC; the caller's deadline and request id go along.

    Every method raises `neuropil.errors.NeuropilError` as the record reader answers: NOT_FOUND,
    DATA_LOSS, UNAVAILABLE.
    """

    def __init__(self, stub: RecordReaderAsyncStub) -> None:
        self._stub = stub

    async def split(self, source: v1.RecordedComponent) -> ScoringSplit:
        """The calibration and validation sequences of the component's record.

        INVALID_ARGUMENT for a component that is recorded by token pair.
        """
        record = await self._token_record(source, records.RecordView())
        return ScoringSplit.from_record(
            labeled_sequences(record.top_sequences, "record.top_sequences"),
            labeled_sequences(record.random_sequences, "record.random_sequences"),
            record.dataset,
        )

    async def token_pair_split(self, source: v1.RecordedComponent) -> TokenPairSplit:
        """The validation sequences of the record of a component by token pair."""
        record = await self._token_pair_record(source, records.RecordView())
        return TokenPairSplit.from_record(
            labeled_token_pairs(record.top_sequences, "record.top_sequences"),
            labeled_token_pairs(record.random_sequences, "record.random_sequences"),
            record.dataset,
        )

    async def evidence(self, source: v1.RecordedComponent) -> Evidence:
        """What an explainer sees of the component's record, by token or by token pair."""
        if by_token_pair(source.component):
            pairs = await self._token_pair_record(source, _WITH_QUANTILES)
            return TokenPairEvidence.from_record(
                labeled_token_pairs(pairs.top_sequences, "record.top_sequences"),
                labeled_token_pairs(pairs.random_sequences, "record.random_sequences"),
                _pair_quantiles(pairs.quantile_sequences),
                pairs.dataset,
            )
        record = await self._token_record(source, _WITH_QUANTILES)
        return TokenEvidence.from_record(
            labeled_sequences(record.top_sequences, "record.top_sequences"),
            labeled_sequences(record.random_sequences, "record.random_sequences"),
            _quantiles(record.quantile_sequences),
            record.dataset,
        )

    async def _token_record(
        self, source: v1.RecordedComponent, view: records.RecordView
    ) -> records.GetTokenRecordResponse:
        request = records.GetTokenRecordRequest(
            component=source.component, datasets=source.datasets, view=view
        )
        async with atranslated():
            return await self._stub.GetTokenRecord(request)

    async def _token_pair_record(
        self, source: v1.RecordedComponent, view: records.RecordView
    ) -> records.GetTokenPairRecordResponse:
        request = records.GetTokenPairRecordRequest(
            component=source.component, datasets=source.datasets, view=view
        )
        async with atranslated():
            return await self._stub.GetTokenPairRecord(request)


def _quantiles(messages: Iterable[common.TokenSequences]) -> LabeledSequences:
    # The highest quantile first: what is active says more.
    parts = [labeled_sequences(message, "record.quantile_sequences") for message in messages]
    return reduce(add, reversed(parts), LabeledSequences())


def _pair_quantiles(messages: Iterable[common.TokenPairSequences]) -> LabeledTokenPairs:
    parts = [labeled_token_pairs(message, "record.quantile_sequences") for message in messages]
    return reduce(add, reversed(parts), LabeledTokenPairs())
