"""Records and explanations as messages of the contract, and what requests name as the domain's."""

from __future__ import annotations

from collections.abc import Sequence

from neuropil.common import v1 as common
from neuropil.names import DERIVED_SCALAR_TYPES
from neuropil.records import v1
from services.records.batches import BatchItem
from services.records.components import Component, View
from services.records.explanations import Explanation, Failure
from services.records.reading import Encoders
from services.records.record_messages import (
    serialized_token_pair_record,
    serialized_token_record,
)
from services.records.wire import Field, NumberField, Parts, joined
from shared.errors import InvalidArgument
from shared.settings import Dataset

_POSITION = NumberField(v1.BatchGetRecordsResponse, "position")
_TOKEN_RECORD = Field(v1.BatchGetRecordsResponse, "token_record")
_TOKEN_PAIR_RECORD = Field(v1.BatchGetRecordsResponse, "token_pair_record")
_FAILURE = Field(v1.BatchGetRecordsResponse, "failure")
_FOLLOWING = Field(v1.BatchGetRecordsResponse, "following")


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
        metadata=failure.metadata,
    )


def batch_message(items: Sequence[BatchItem]) -> bytes:
    """The serialized answer for components of a batch that go together, at least one.

    The records in it are neither parsed nor copied more than once.
    """
    parts = _batch_parts(items[0])
    for item in items[1:]:
        parts += _FOLLOWING.of(_batch_parts(item))
    return joined(parts)


def _batch_parts(item: BatchItem) -> list[bytes | memoryview]:
    content: Parts
    if isinstance(item.outcome, Failure):
        field, content = _FAILURE, [failure_message(item.outcome).SerializeToString()]
    else:
        field = _TOKEN_PAIR_RECORD if item.by_token_pair else _TOKEN_RECORD
        content = [item.outcome]
    return [*_POSITION.of(item.position), *field.of(content)]


def encoders() -> Encoders:
    """How the record reader's answers are serialized."""
    return Encoders(
        token_record=serialized_token_record,
        token_pair_record=serialized_token_pair_record,
        explanations=lambda found: v1.ListExplanationsResponse(
            explanations=[explanation_message(each) for each in found]
        ).SerializeToString(),
        failures=lambda failures: v1.ListExplanationsResponse(
            failures=[failure_message(each) for each in failures]
        ).SerializeToString(),
    )
