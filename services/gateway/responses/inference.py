"""Answers of the routes that run the model, as the OpenAPI document describes them."""

from __future__ import annotations

from enum import StrEnum

from services.gateway.names import GroupId
from services.gateway.requests.inference import MirroredNodeIndex
from services.gateway.responses.common import Answer, TokenAndAttentionScalars, TokenAndScalar


class ProcessingResponseDataType(StrEnum):
    """What a part of an answer holds."""

    DERIVED_SCALARS = "derived_scalars_response_data"
    DERIVED_ATTENTION_SCALARS = "derived_attention_scalars_response_data"
    MULTIPLE_TOP_K_DERIVED_SCALARS = "multiple_top_k_derived_scalars_response_data"
    SCORED_TOKENS = "scored_tokens_response_data"
    TOKEN_PAIR_ATTRIBUTION = "token_pair_attribution_response_data"


class TensorType(StrEnum):
    """Number of dimensions of an array."""

    TENSOR_0D = "tensor_0d"
    TENSOR_1D = "tensor_1d"
    TENSOR_2D = "tensor_2d"
    TENSOR_3D = "tensor_3d"


class ModelInfoResponse(Answer):
    """The model."""

    model_name: str | None = None
    has_mlp_autoencoder: bool
    mlp_autoencoder_name: str | None = None
    has_attention_autoencoder: bool
    attention_autoencoder_name: str | None = None
    n_layers: int


class InferenceAndTokenData(Answer):
    """What a run gave besides activations. Times are in seconds, memory in bytes."""

    inference_time: float
    memory_used_before: float | None = None
    memory_used_after: float | None = None
    log: str | None = None
    loss: float | None = None
    activation_value_for_backward_pass: float | None = None
    tokens_as_ints: list[int]
    tokens_as_strings: list[str]


class TopTokens(Answer):
    """Vocabulary entries that a component promotes and suppresses most when it is active.

    Where its activation at the first token is negative, `top` has the smallest scores.
    """

    top: list[TokenAndScalar]
    bottom: list[TokenAndScalar]


class DerivedScalarsResponseData(Answer):
    """The scalars of one component and their nodes."""

    response_data_type: ProcessingResponseDataType = ProcessingResponseDataType.DERIVED_SCALARS
    activations: list[float]
    normalized_activations: list[float] | None = None
    node_indices: list[MirroredNodeIndex]
    top_tokens: TopTokens | None = None


class DerivedScalarsResponse(Answer):
    """A run and what was derived from it."""

    inference_and_token_data: InferenceAndTokenData
    derived_scalars_response_data: DerivedScalarsResponseData


class DerivedAttentionScalarsResponseData(Answer):
    """The prompt's tokens with the scalars of one component at their token pairs."""

    response_data_type: ProcessingResponseDataType = (
        ProcessingResponseDataType.DERIVED_ATTENTION_SCALARS
    )
    token_and_attention_scalars_list: list[TokenAndAttentionScalars]


class DerivedAttentionScalarsResponse(Answer):
    """A run and what was derived from it."""

    inference_and_token_data: InferenceAndTokenData
    derived_attention_scalars_response_data: DerivedAttentionScalarsResponseData


class Tensor0D(Answer):
    """A number."""

    tensor_type: TensorType = TensorType.TENSOR_0D
    value: float


class Tensor1D(Answer):
    """A vector."""

    tensor_type: TensorType = TensorType.TENSOR_1D
    value: list[float]


class Tensor2D(Answer):
    """A matrix."""

    tensor_type: TensorType = TensorType.TENSOR_2D
    value: list[list[float]]


class Tensor3D(Answer):
    """An array of three dimensions."""

    tensor_type: TensorType = TensorType.TENSOR_3D
    value: list[list[list[float]]]


class MultipleTopKDerivedScalarsResponseData(Answer):
    """The strongest nodes, each group's scalars of them, and sums over all nodes."""

    response_data_type: ProcessingResponseDataType = (
        ProcessingResponseDataType.MULTIPLE_TOP_K_DERIVED_SCALARS
    )
    activations_by_group_id: dict[GroupId, list[float]]
    node_indices: list[MirroredNodeIndex]
    vocab_token_strings_for_indices: list[str] | None = None
    intermediate_sum_activations_by_dst_by_group_id: dict[
        GroupId, dict[str, Tensor0D | Tensor1D | Tensor2D | Tensor3D]
    ]


class MultipleTopKDerivedScalarsResponse(Answer):
    """A run and what was derived from it."""

    inference_and_token_data: InferenceAndTokenData
    multiple_top_k_derived_scalars_response_data: MultipleTopKDerivedScalarsResponseData
