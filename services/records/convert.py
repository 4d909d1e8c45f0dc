"""Records and explanations as messages of the contract, and what requests name as the domain's."""

from __future__ import annotations

from neuropil.common import v1 as common
from neuropil.names import DERIVED_SCALAR_TYPES
from neuropil.records import v1
from neuropil.tensors import to_tensor
from services.records.components import Component, View
from services.records.explanations import Explanation, Failure
from services.records.loading import Moments, Record
from services.records.reading import BatchItem, Encoders
from services.records.sequences import Summary, TokenPairSequences, TokenSequences
from shared.errors import InvalidArgument
from shared.settings import Dataset


def component_of(message: common.ComponentId, field: str = "component") -> Component:
    """The component that a request names; InvalidArgument where it has no layer."""
    if not message.HasField("layer_index"):
        raise InvalidArgument(
            f"{field}.layer_index is missing: records are stored by layer.",
            field=f"{field}.layer_index",
        )
    return Component(
        scalar_type_of(message.derived_scalar_type, f"{field}.derived_scalar_type"),
        message.layer_index,
        message.component_index,
    )


def scalar_type_of(value: int, field: str) -> str:
    """The name of a derived scalar type; InvalidArgument where it is unset or unknown."""
    name = DERIVED_SCALAR_TYPES.name(value)
    if not name:
        raise InvalidArgument(f"{field} {value} is no derived scalar type.", field=field)
    return name


def view_of(message: v1.RecordView) -> View:
    """What a request wants of a record."""
    return View(quantile_samples=message.include_quantile_samples, moments=message.include_moments)


def component_message(component: Component) -> common.ComponentId:
    """A component as a message."""
    return common.ComponentId(
        derived_scalar_type=DERIVED_SCALAR_TYPES.value(component.derived_scalar_type),
        layer_index=component.layer_index,
        component_index=component.component_index,
    )


def dataset_message(dataset: Dataset) -> v1.Dataset:
    """A configured dataset; its derived scalar type by name too, as it may be none of the enum."""
    name = dataset.derived_scalar_type
    known = DERIVED_SCALAR_TYPES.value(name) if name in DERIVED_SCALAR_TYPES else 0
    return v1.Dataset(
        short_name=dataset.short_name,
        derived_scalar_type=known,  # type: ignore[arg-type]
        user_visible_name=dataset.user_visible_name,
        neuron_dataset_path=dataset.neuron_dataset_path,
        explanation_dataset_paths=dataset.explanation_dataset_paths,
        derived_scalar_type_name=name,
    )


def token_record_message(record: Record[TokenSequences]) -> v1.GetTokenRecordResponse:
    """A record by token."""
    return v1.GetTokenRecordResponse(
        dataset=record.dataset,
        component=component_message(record.component),
        max_activation=record.max_activation,
        top_sequences=_token_sequences(record.top),
        random_sequences=_token_sequences(record.random),
        quantile_sequences=[_token_sequences(each) for each in record.quantiles],
        quantile_boundaries=record.quantile_boundaries,
        moments=_moments(record.moments),
    )


def token_pair_record_message(
    record: Record[TokenPairSequences],
) -> v1.GetTokenPairRecordResponse:
    """A record by token pair."""
    return v1.GetTokenPairRecordResponse(
        dataset=record.dataset,
        component=component_message(record.component),
        max_activation=record.max_activation,
        top_sequences=_token_pair_sequences(record.top),
        random_sequences=_token_pair_sequences(record.random),
        quantile_sequences=[_token_pair_sequences(each) for each in record.quantiles],
        quantile_boundaries=record.quantile_boundaries,
        moments=_moments(record.moments),
    )


def explanation_message(explanation: Explanation) -> v1.Explanation:
    """An explanation with its preferred score."""
    return v1.Explanation(
        text=explanation.text,
        score=explanation.score,
        dataset_name=explanation.dataset_name,
        dataset=explanation.dataset,
    )


def failure_message(failure: Failure) -> v1.Failure:
    """Why a part of an answer is missing."""
    return v1.Failure(
        code=failure.code,
        reason=failure.reason,
        message=failure.message,
        dataset=failure.dataset,
    )


def batch_message(item: BatchItem) -> bytes:
    """The serialized answer for one component of a batch, without parsing the record in it."""
    message = v1.BatchGetRecordsResponse(position=item.position)
    if isinstance(item.outcome, Failure):
        message.failure.CopyFrom(failure_message(item.outcome))
        return message.SerializeToString()
    field = "token_pair_record" if item.by_token_pair else "token_record"
    number = v1.BatchGetRecordsResponse.DESCRIPTOR.fields_by_name[field].number
    # A sub-message on the wire is its field's key, its length, and its bytes as they are.
    key = _varint(number << 3 | 2)
    return message.SerializeToString() + key + _varint(len(item.outcome)) + item.outcome


def encoders() -> Encoders:
    """How the record reader's answers are serialized."""
    return Encoders(
        token_record=lambda record: token_record_message(record).SerializeToString(),
        token_pair_record=lambda record: token_pair_record_message(record).SerializeToString(),
        explanations=lambda found: v1.ListExplanationsResponse(
            explanations=[explanation_message(each) for each in found]
        ).SerializeToString(),
        failures=lambda failures: v1.ListExplanationsResponse(
            failures=[failure_message(each) for each in failures]
        ).SerializeToString(),
    )


def _token_sequences(columns: TokenSequences) -> common.TokenSequences:
    return common.TokenSequences(
        tokens=columns.tokens,
        sequence_lengths=columns.lengths,
        activations=to_tensor(columns.activations),
        normalized_activations=to_tensor(columns.normalized),
    )


def _token_pair_sequences(columns: TokenPairSequences) -> common.TokenPairSequences:
    return common.TokenPairSequences(
        tokens=columns.tokens,
        sequence_lengths=columns.lengths,
        attended_to_caps=columns.caps,
        activations=to_tensor(columns.activations),
        normalized_activations=to_tensor(columns.normalized),
        total_in=_summary(columns.total_in),
        max_in=_summary(columns.max_in),
        total_out=_summary(columns.total_out),
        max_out=_summary(columns.max_out),
    )


def _summary(summary: Summary) -> common.TokenPairSummary:
    return common.TokenPairSummary(
        values=to_tensor(summary.values), normalized_values=to_tensor(summary.normalized)
    )


def _moments(moments: Moments | None) -> v1.Moments | None:
    if moments is None:
        return None
    return v1.Moments(
        mean=moments.mean,
        variance=moments.variance,
        skewness=moments.skewness,
        kurtosis=moments.kurtosis,
    )


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
