"""Answers as the OpenAPI document describes them.

Nothing makes objects of these classes: answers are built from arrays (`services.gateway.encoding`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from services.gateway.names import GroupId
from services.gateway.requests import MirroredNodeIndex


class Answer(BaseModel):
    """What all answers have in common."""

    model_config = ConfigDict(alias_generator=to_camel, serialize_by_alias=True)


class Problem(Answer):
    """Body of an error."""

    message: str
    code: str
    reason: str
    field: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request can't be right; `field` says where"},
    404: {"model": Problem, "description": "What was named does not exist"},
    502: {"model": Problem, "description": "Stored data can't be read"},
    503: {"model": Problem, "description": "A service, or the model, is not there"},
    504: {"model": Problem, "description": "The request's time is over"},
}
"""Errors of the routes that call a service."""


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


class TokenAndScalar(Answer):
    """A token with its value; null where the value is not finite."""

    token: str
    scalar: float
    normalized_scalar: float


class Moments(Answer):
    """Moments of a component's activations over the corpus."""

    mean: float | None = None
    variance: float | None = None
    skewness: float | None = None
    kurtosis: float | None = None


class NeuronRecordResponse(Answer):
    """A record by token; the last three only if they were asked for."""

    dataset: str
    max_activation: float
    top_activations: list[list[TokenAndScalar]]
    random_sample: list[list[TokenAndScalar]]
    quantile_samples: list[list[list[TokenAndScalar]]] | None = None
    quantile_boundaries: list[float] | None = None
    moments: Moments | None = None


class TokenAndAttentionScalars(Answer):
    """An attending token with its row, and sums and maxima of its row and column."""

    token: str
    scalars: list[float]
    normalized_scalars: list[float]
    total_scalar_in: float
    normalized_total_scalar_in: float
    max_scalar_in: float
    normalized_max_scalar_in: float
    total_scalar_out: float
    normalized_total_scalar_out: float
    max_scalar_out: float
    normalized_max_scalar_out: float


class AttentionHeadRecordResponse(Answer):
    """A record by token pair; the last three only if they were asked for."""

    dataset: str
    max_attention_activation: float
    most_positive_token_sequences: list[list[TokenAndAttentionScalars]]
    random_token_sequences: list[list[TokenAndAttentionScalars]]
    quantile_samples: list[list[list[TokenAndAttentionScalars]]] | None = None
    quantile_boundaries: list[float] | None = None
    moments: Moments | None = None


class AttributedScoredExplanation(Answer):
    """An explanation, its score, and the dataset that it is from."""

    explanation: str
    score: float | None = None
    dataset_name: str


class NeuronDatasetMetadata(Answer):
    """A dataset of records."""

    short_name: str
    derived_scalar_type: str
    user_visible_name: str
    neuron_dataset_path: str


class ScoreResult(Answer):
    """The score, null where it is undefined, and the dataset that the record was in."""

    score: float
    dataset_path: str


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
    """Vocabulary entries that a component's write promotes and suppresses most."""

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
