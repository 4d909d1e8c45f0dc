"""Bodies that clients send.

Keys are camelCase, snake_case is accepted, unknown keys are ignored, a number may be written as a
string. What does not fit the schema is told from what fits and is impossible all the same (a
negative or fractional index, text that is no Unicode): the first is answered with 422, the second,
raised as `IMPOSSIBLE`, with 400.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from services.gateway.names import (
    ActivationLocationType,
    AttentionTraceType,
    DerivedScalarType,
    Dimension,
    GroupId,
    LossFnName,
    NodeType,
    PassType,
    PreOrPostAct,
)

_INTEGERS = TypeAdapter(int)

IMPOSSIBLE = "impossible"
"""Type of the validation errors that are answered with 400."""

_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*", re.ASCII)
_MISFIT = "int_parsing"


def _refuse_fraction(value: Any) -> Any:
    # pydantic would read true as 1, and "1_0" as 10.
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise PydanticCustomError(_MISFIT, "must be a whole number")
    number = float(value) if isinstance(value, str) else value
    if isinstance(number, float) and not (math.isfinite(number) and number.is_integer()):
        raise PydanticCustomError(IMPOSSIBLE, "must be a whole number")
    return int(number) if isinstance(value, float) else value


def _refuse_huge(value: int) -> int:
    if abs(value) > _MAX_INT64:
        raise PydanticCustomError(IMPOSSIBLE, "must be below 2^63")
    return value


def _refuse_large(value: int) -> int:
    if abs(value) > _MAX_INT32:
        raise PydanticCustomError(IMPOSSIBLE, "must be below 2^31")
    return value


def _refuse_negative(value: int) -> int:
    if value < 0:
        raise PydanticCustomError(IMPOSSIBLE, "must not be negative")
    return value


def _refuse_surrogates(value: str) -> str:
    # JSON can spell half a character ("\ud800"), which no text has.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            IMPOSSIBLE, "must be Unicode text without lone surrogates"
        ) from None
    return value


def _at_most(limit: int) -> BeforeValidator:
    """Refuse a list over the contract's limit before its items are looked at, one by one."""

    def check(value: Any) -> Any:
        if isinstance(value, list) and len(value) > limit:
            raise PydanticCustomError(
                IMPOSSIBLE,
                "must hold at most {limit} items, not {length}",
                {"limit": limit, "length": len(value)},
            )
        return value

    return BeforeValidator(check)


Integer = Annotated[int, BeforeValidator(_refuse_fraction), AfterValidator(_refuse_huge)]
Index = Annotated[Integer, AfterValidator(_refuse_negative)]
Count = Annotated[Integer, AfterValidator(_refuse_large), AfterValidator(_refuse_negative)]
Text = Annotated[str, AfterValidator(_refuse_surrogates)]


def _check_index_or_all(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    # As a plain union it would be two problems, of which one is always a misfit.
    if value == "All":
        return value
    try:
        number = _INTEGERS.validate_python(_refuse_fraction(value))
    except (ValidationError, PydanticCustomError) as error:
        if isinstance(error, PydanticCustomError) and error.type == IMPOSSIBLE:
            raise
        raise PydanticCustomError("index", 'must be an index or "All"') from None
    return _refuse_negative(_refuse_huge(number))


IndexOrAll = Annotated[int | Literal["All"], WrapValidator(_check_index_or_all)]


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, frozen=True
    )


class ComponentId(Body):
    """A component, by what is derived of it."""

    dst: DerivedScalarType
    layer_index: Index
    activation_index: Index


class NodeIdAndDatasets(ComponentId):
    """A component and the datasets to look for its record in, in that order.

    The record routes also answer what of a record is asked for besides its top and random
    sequences.
    """

    datasets: Annotated[list[Text], _at_most(64)]
    include_quantile_samples: bool = False
    include_moments: bool = False


class ExistingExplanationsRequest(ComponentId):
    """Exactly one of the two says where to look."""

    explanation_datasets: Annotated[list[Text], _at_most(64)]
    neuron_dataset: Text | None = None


class ScoreRequest(ComponentId):
    """An explanation to score against a component's record."""

    datasets: Annotated[list[Text], _at_most(64)]
    explanation: Text
    max_sequences: Count | None = None


class MirroredActivationIndex(Body):
    """An activation, or a slice of activations, by place."""

    activation_location_type: ActivationLocationType
    tensor_indices: Annotated[list[IndexOrAll], _at_most(4)]
    layer_index: Index | None = None
    pass_type: PassType


class MirroredNodeIndex(Body):
    """A node; a null index means all of the dimension."""

    node_type: NodeType
    tensor_indices: Annotated[list[Index | None], _at_most(4)]
    layer_index: Index | None = None
    pass_type: PassType


class AblationSpec(Body):
    """What to overwrite, with which value."""

    index: MirroredActivationIndex
    value: float


class LossFnConfig(Body):
    """What the backward pass starts from."""

    name: LossFnName
    target_tokens: Annotated[list[Text], _at_most(1000)] | None = None
    distractor_tokens: Annotated[list[Text], _at_most(1000)] | None = None


class MirroredTraceConfig(Body):
    """A node that the backward pass starts from."""

    node_index: MirroredNodeIndex
    pre_or_post_act: PreOrPostAct
    detach_layer_norm_scale: bool
    attention_trace_type: AttentionTraceType | None = None
    downstream_trace_config: MirroredTraceConfig | None = None


class InferenceRequestSpec(Body):
    """What to run on the model."""

    prompt: Text
    ablation_specs: Annotated[list[AblationSpec], _at_most(1000)] | None = None
    loss_fn_config: LossFnConfig | None = None
    trace_config: MirroredTraceConfig | None = None
    activation_index_for_within_layer_grad: MirroredActivationIndex | None = None


class DerivedScalarsRequestSpec(Body):
    """The scalars of one component at every token."""

    spec_type: Literal["derived_scalars_request_spec"] = "derived_scalars_request_spec"
    dst: DerivedScalarType
    layer_index: Index | None = None
    activation_index: Index
    normalize_activations_using_neuron_record: NodeIdAndDatasets | None = None
    pass_type: PassType = PassType("forward")
    num_top_tokens: Count | None = None


class DerivedScalarsRequest(Body):
    """A run of the model and what to derive from it."""

    inference_request_spec: InferenceRequestSpec
    derived_scalars_request_spec: DerivedScalarsRequestSpec


class DerivedAttentionScalarsRequestSpec(Body):
    """The scalars of one component at every token pair."""

    spec_type: Literal["derived_attention_scalars_request_spec"] = (
        "derived_attention_scalars_request_spec"
    )
    dst: DerivedScalarType
    layer_index: Index | None = None
    activation_index: Index
    normalize_activations_using_neuron_record: NodeIdAndDatasets | None = None


class DerivedAttentionScalarsRequest(Body):
    """A run of the model and what to derive from it."""

    inference_request_spec: InferenceRequestSpec
    derived_attention_scalars_request_spec: DerivedAttentionScalarsRequestSpec


DEFAULT_SUM_DIMENSIONS = ("sequence_tokens", "attended_to_sequence_tokens")
"""What sums over nodes keep of a scalar type's dimensions, unless asked for others."""


class MultipleTopKDerivedScalarsRequestSpec(Body):
    """The strongest nodes over groups of derived scalar types."""

    spec_type: Literal["multiple_top_k_derived_scalars_request_spec"] = (
        "multiple_top_k_derived_scalars_request_spec"
    )
    dst_list_by_group_id: dict[GroupId, Annotated[list[DerivedScalarType], _at_most(16)]]
    token_index: Integer | None = None
    top_and_bottom_k: Count | None = None
    pass_type: PassType = PassType("forward")
    dimensions_to_keep_for_intermediate_sum: list[Dimension] = Field(
        default=[Dimension(name) for name in DEFAULT_SUM_DIMENSIONS]
    )
    exclude_bottom_k: bool = False


class MultipleTopKDerivedScalarsRequest(Body):
    """A run of the model and what to derive from it."""

    inference_request_spec: InferenceRequestSpec
    multiple_top_k_derived_scalars_request_spec: MultipleTopKDerivedScalarsRequestSpec
