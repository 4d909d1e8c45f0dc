"""Answers about records and explanations, as the OpenAPI document describes them."""

from __future__ import annotations

from services.gateway.responses.common import Answer, TokenAndAttentionScalars, TokenAndScalar


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


class ExplanationResult(Answer):
    """Proposed explanations, best first, and the dataset that the record was in."""

    explanations: list[str]
    dataset: str


class ScoreResult(Answer):
    """The score, null where it is undefined, and the dataset that the record was in."""

    score: float
    dataset_path: str
