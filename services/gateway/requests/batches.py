"""Bodies of /batched: several runs of the model, and several specs for each."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from services.gateway.requests.fields import Body, Text, at_most
from services.gateway.requests.inference import InferenceRequestSpec
from services.gateway.requests.specs import (
    DerivedAttentionScalarsRequestSpec,
    DerivedScalarsRequestSpec,
    MultipleTopKDerivedScalarsRequestSpec,
    ScoredTokensRequestSpec,
    TokenPairAttributionRequestSpec,
)

MOST_INFERENCES = 100
MOST_SPECS = 100
"""Of one inference; both are limits of the contract."""

_Spec = (
    MultipleTopKDerivedScalarsRequestSpec
    | DerivedScalarsRequestSpec
    | DerivedAttentionScalarsRequestSpec
    | ScoredTokensRequestSpec
    | TokenPairAttributionRequestSpec
)
_BY_TYPE: dict[str, type[_Spec]] = {
    str(each.model_fields["spec_type"].default): each for each in _Spec.__args__
}
# The fields that tell by themselves what a spec is. Scalars by token and by token pair have the
# same: without a type it is those by token.
_BY_FIELD: dict[str, type[_Spec]] = {
    "dst_list_by_group_id": MultipleTopKDerivedScalarsRequestSpec,
    "token_scoring_type": ScoredTokensRequestSpec,
    "num_tokens_attended_to": TokenPairAttributionRequestSpec,
    "dst": DerivedScalarsRequestSpec,
}


def _told_apart(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Validate a spec as what its `specType` says, or else its shape.

    As a plain union it would have the problems of all five kinds.
    """
    if not isinstance(value, dict):
        if isinstance(value, Body):
            return handler(value)
        raise _misfit("must be an object")
    spec_type = value.get("specType", value.get("spec_type"))
    if spec_type is None:
        kind = _kind_of_shape(value)
        untyped = {key: each for key, each in value.items() if key not in ("specType", "spec_type")}
        return kind.model_validate(untyped)
    known = _BY_TYPE.get(spec_type) if isinstance(spec_type, str) else None
    if known is None:
        problem = PydanticCustomError(
            "spec_type", "must be one of {known}", {"known": ", ".join(_BY_TYPE)}
        )
        raise ValidationError.from_exception_data(
            "spec", [InitErrorDetails(type=problem, loc=("specType",), input=spec_type)]
        )
    return known.model_validate(value)


def _kind_of_shape(value: dict[str, Any]) -> type[_Spec]:
    for name, kind in _BY_FIELD.items():
        if name in value or kind.model_fields[name].alias in value:
            return kind
    aliases = [str(kind.model_fields[name].alias) for name, kind in _BY_FIELD.items()]
    raise _misfit(f"must have one of {', '.join(aliases)}")


def _misfit(message: str) -> PydanticCustomError:
    return PydanticCustomError("spec", "{message}", {"message": message})


ProcessingRequestSpec = Annotated[_Spec, WrapValidator(_told_apart)]
"""What to derive; `specType` says which kind it is, or the shape where it is left out."""


class InferenceSubRequest(Body):
    """A run of the model and what to derive from it, by name."""

    inference_request_spec: InferenceRequestSpec
    processing_request_spec_by_name: Annotated[
        dict[Text, ProcessingRequestSpec], at_most(MOST_SPECS)
    ] = Field(default={})


class BatchedRequest(Body):
    """Several runs; the nodes of specs of the same name are united over them."""

    inference_sub_requests: Annotated[list[InferenceSubRequest], at_most(MOST_INFERENCES)]
