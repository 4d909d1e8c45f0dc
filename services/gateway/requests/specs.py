"""What to derive from a run of the model, as bodies say it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from services.gateway.names import (
    DerivedScalarType,
    Dimension,
    GroupId,
    PassType,
    TokenScoringType,
)
from services.gateway.requests.components import NodeIdAndDatasets
from services.gateway.requests.fields import Body, Count, Index, Integer, Text, at_most
from services.gateway.requests.inference import InferenceRequestSpec


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
    dst_list_by_group_id: dict[GroupId, Annotated[list[DerivedScalarType], at_most(16)]]
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


class ScoredTokensRequestSpec(Body):
    """Vocabulary entries scored for the nodes of another spec of the same run."""

    spec_type: Literal["scored_tokens_request_spec"] = "scored_tokens_request_spec"
    token_scoring_type: TokenScoringType
    num_tokens: Count
    depends_on_spec_name: Text


class TokenPairAttributionRequestSpec(Body):
    """Attended-to tokens that the nodes of another spec of the same run are attributed to."""

    spec_type: Literal["token_pair_attribution_request_spec"] = (
        "token_pair_attribution_request_spec"
    )
    num_tokens_attended_to: Count
    depends_on_spec_name: Text
