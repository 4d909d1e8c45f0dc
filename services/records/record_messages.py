"""Records as serialized messages of the contract."""

from __future__ import annotations

from collections.abc import Sequence

from neuropil.common import v1 as common
from neuropil.names import DERIVED_SCALAR_TYPES
from neuropil.records import v1
from neuropil.tensors import data_type_of
from services.records.components import Component
from services.records.loading import Moments, Record
from services.records.precision import FloatArray
from services.records.sequences import Summary, TokenPairSequences, TokenSequences
from services.records.wire import Field, Parts, joined

_TENSOR_DATA = Field(common.Tensor, "data")
_SUMMARY = [Field(common.TokenPairSummary, name) for name in ("values", "normalized_values")]
_SEQUENCES = [
    Field(common.TokenSequences, name) for name in ("activations", "normalized_activations")
]
_PAIRS = [
    Field(common.TokenPairSequences, name) for name in ("activations", "normalized_activations")
]
_SUMMARIES = [
    Field(common.TokenPairSequences, name)
    for name in ("total_in", "max_in", "total_out", "max_out")
]
_PARTS = ("top_sequences", "random_sequences", "quantile_sequences")
_TOKEN_PARTS = [Field(v1.GetTokenRecordResponse, name) for name in _PARTS]
_PAIR_PARTS = [Field(v1.GetTokenPairRecordResponse, name) for name in _PARTS]


def serialized_token_record(record: Record[TokenSequences]) -> bytes:
    """A record by token as a GetTokenRecordResponse."""
    rest = v1.GetTokenRecordResponse(
        dataset=record.dataset,
        component=component_message(record.component),
        max_activation=record.max_activation,
        quantile_boundaries=record.quantile_boundaries,
        moments=_moments(record.moments),
    )
    top, random, quantile = _TOKEN_PARTS
    parts = [
        rest.SerializeToString(),
        *top.of(_token_sequences(record.top)),
        *random.of(_token_sequences(record.random)),
    ]
    for columns in record.quantiles:
        parts += quantile.of(_token_sequences(columns))
    return joined(parts)


def serialized_token_pair_record(record: Record[TokenPairSequences]) -> bytes:
    """A record by token pair as a GetTokenPairRecordResponse."""
    rest = v1.GetTokenPairRecordResponse(
        dataset=record.dataset,
        component=component_message(record.component),
        max_activation=record.max_activation,
        quantile_boundaries=record.quantile_boundaries,
        moments=_moments(record.moments),
    )
    top, random, quantile = _PAIR_PARTS
    parts = [
        rest.SerializeToString(),
        *top.of(_token_pair_sequences(record.top)),
        *random.of(_token_pair_sequences(record.random)),
    ]
    for columns in record.quantiles:
        parts += quantile.of(_token_pair_sequences(columns))
    return joined(parts)


def component_message(component: Component) -> common.ComponentId:
    """A component as a message."""
    return common.ComponentId(
        derived_scalar_type=DERIVED_SCALAR_TYPES.value(component.derived_scalar_type),
        layer_index=component.layer_index,
        component_index=component.component_index,
    )


def _token_sequences(columns: TokenSequences) -> Parts:
    rest = common.TokenSequences(tokens=columns.tokens, sequence_lengths=columns.lengths)
    return [
        rest.SerializeToString(),
        *_tensors(_SEQUENCES, (columns.activations, columns.normalized)),
    ]


def _token_pair_sequences(columns: TokenPairSequences) -> Parts:
    rest = common.TokenPairSequences(
        tokens=columns.tokens,
        sequence_lengths=columns.lengths,
        attended_to_caps=columns.caps,
    )
    parts = [
        rest.SerializeToString(),
        *_tensors(_PAIRS, (columns.activations, columns.normalized)),
    ]
    summaries = (columns.total_in, columns.max_in, columns.total_out, columns.max_out)
    for field, summary in zip(_SUMMARIES, summaries, strict=True):
        parts += field.of(_summary(summary))
    return parts


def _summary(summary: Summary) -> Parts:
    return _tensors(_SUMMARY, (summary.values, summary.normalized))


def _tensors(fields: Sequence[Field], arrays: Sequence[FloatArray]) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    for field, array in zip(fields, arrays, strict=True):
        parts += field.of(_tensor(array))
    return parts


def _tensor(array: FloatArray) -> Parts:
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    rest = common.Tensor(data_type=data_type_of(little.dtype), shape=array.shape)
    if not array.size:
        return [rest.SerializeToString()]
    return [rest.SerializeToString(), *_TENSOR_DATA.of([little.data.cast("B")])]


def _moments(moments: Moments | None) -> v1.Moments | None:
    if moments is None:
        return None
    return v1.Moments(
        mean=moments.mean,
        variance=moments.variance,
        skewness=moments.skewness,
        kurtosis=moments.kurtosis,
    )
