"""Answers of /batched and /batched_tdb, as the OpenAPI document describes them."""

from __future__ import annotations

from pydantic import Field

from services.gateway.requests.inference import MirroredNodeIndex
from services.gateway.responses.common import Answer
from services.gateway.responses.inference import (
    DerivedAttentionScalarsResponseData,
    DerivedScalarsResponseData,
    InferenceAndTokenData,
    MultipleTopKDerivedScalarsResponseData,
    ProcessingResponseDataType,
    TopTokens,
)


class ScoredTokensResponseData(Answer):
    """Vocabulary entries of each node; null for a node that the scoring does not apply to."""

    response_data_type: ProcessingResponseDataType = ProcessingResponseDataType.SCORED_TOKENS
    node_indices: list[MirroredNodeIndex]
    top_tokens_list: list[TopTokens]


class TopTokensAttendedTo(Answer):
    """Positions of the prompt that a node is attributed to, largest attribution first."""

    token_indices: list[int]
    attributions: list[float]


class TokenPairAttributionResponseData(Answer):
    """Attended-to tokens of each node; null for a node that is not attributed to token pairs."""

    response_data_type: ProcessingResponseDataType = (
        ProcessingResponseDataType.TOKEN_PAIR_ATTRIBUTION
    )
    node_indices: list[MirroredNodeIndex]
    top_tokens_attended_to_list: list[TopTokensAttendedTo]


class InferenceResponse(Answer):
    """A run."""

    inference_and_token_data: InferenceAndTokenData


class InferenceResponseAndResponseDict(Answer):
    """A run and what was derived from it, by name."""

    inference_response: InferenceResponse
    processing_response_data_by_name: dict[
        str,
        MultipleTopKDerivedScalarsResponseData
        | DerivedScalarsResponseData
        | DerivedAttentionScalarsResponseData
        | ScoredTokensResponseData
        | TokenPairAttributionResponseData,
    ] = Field(default={})


class BatchedResponse(Answer):
    """The runs, in the order of the request."""

    inference_sub_responses: list[InferenceResponseAndResponseDict]
