"""Explanations of a component, their simulations and scores: the classes of an explanation file.

Fields have the names that the files have; undefined numbers are NaN in memory and null in
a file. The score that represents an explanation is its preferred score.
"""

from __future__ import annotations

import enum
import math

import msgspec

from shared.formats.records import CLASS_NAME_FIELD, Int64, NeuronId


class ActivationScale(enum.StrEnum):
    """The unit of simulated activations."""

    NEURON_ACTIVATIONS = "neuron_activations"
    """Real activations of the component."""
    SIMULATED_NORMALIZED_ACTIVATIONS = "simulated_normalized_activations"
    """The simulator's own scale, 0 to 10, before calibration."""
    HUMAN_PREDICTED_ACTIVATIONS = "human_predicted_activations"
    """A person's prediction: 0 not active, 1 possibly or weakly active, 2 strongly active."""


class SequenceSimulation(msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="SequenceSimulation"):
    """Simulated activations of a component on one sequence of n tokens.

    `expected_activations` has n values. `distribution_values[i]` and
    `distribution_probabilities[i]` are the values that token i may have and their probabilities;
    the lists are empty where a simulator gives no distribution. `uncalibrated_simulation` is what a
    calibration was applied to.
    """

    tokens: list[str]
    expected_activations: list[float]
    activation_scale: ActivationScale
    distribution_values: list[list[float]]
    distribution_probabilities: list[list[float]]
    uncalibrated_simulation: SequenceSimulation | None = None


class ScoredSequenceSimulation(
    msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="ScoredSequenceSimulation"
):
    """A sequence's simulation beside its true activations, and the scores on it alone."""

    sequence_simulation: SequenceSimulation
    true_activations: list[float]
    ev_correlation_score: float | None
    rsquared_score: float | None = None
    absolute_dev_explained_score: float | None = None


class ScoredSimulation(msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="ScoredSimulation"):
    """Simulations of several sequences, and the scores on all of them concatenated."""

    scored_sequence_simulations: list[ScoredSequenceSimulation]
    ev_correlation_score: float | None = None
    rsquared_score: float | None = None
    absolute_dev_explained_score: float | None = None

    def get_preferred_score(self) -> float | None:
        """The correlation of expected and true activations; None where it is undefined."""
        return finite_or_none(self.ev_correlation_score)


class ScoredExplanation(msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="ScoredExplanation"):
    """A sentence on what makes a component active, and how well it predicts the activations."""

    explanation: str
    scored_simulation: ScoredSimulation

    def get_preferred_score(self) -> float | None:
        """The correlation of expected and true activations; None where it is undefined."""
        return self.scored_simulation.get_preferred_score()


class NeuronSimulationResults(
    msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="NeuronSimulationResults"
):
    """All scored explanations of one component in one explanation dataset."""

    neuron_id: NeuronId
    scored_explanations: list[ScoredExplanation]


class AttentionSimulation(msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="AttentionSimulation"):
    """A prediction whether an attention head is active on one pair of tokens.

    `token_pair_coords` is (attending token, attended-to token); `token_pair_label` is 1 where the
    head is active on the pair and 0 where it is not; `simulation_prediction` is the predicted
    probability of 1.
    """

    tokens: list[str]
    token_pair_coords: tuple[Int64, Int64]
    token_pair_label: Int64
    simulation_prediction: float


class ScoredAttentionSimulation(
    msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="ScoredAttentionSimulation"
):
    """Predictions on several token pairs, and the area under their ROC curve."""

    attention_simulations: list[AttentionSimulation]
    roc_auc_score: float | None = None

    def get_preferred_score(self) -> float | None:
        """The area under the ROC curve; None where it is undefined."""
        return finite_or_none(self.roc_auc_score)


class ScoredAttentionExplanation(
    msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="ScoredAttentionExplanation"
):
    """A sentence on what an attention head attends from and to, and its score."""

    explanation: str
    scored_attention_simulation: ScoredAttentionSimulation

    def get_preferred_score(self) -> float | None:
        """The area under the ROC curve; None where it is undefined."""
        return self.scored_attention_simulation.get_preferred_score()


class AttentionSimulationResults(
    msgspec.Struct, tag_field=CLASS_NAME_FIELD, tag="AttentionSimulationResults"
):
    """All scored explanations of one attention head in one explanation dataset."""

    attention_head_id: NeuronId
    scored_explanations: list[ScoredAttentionExplanation]


def finite_or_none(value: float | None) -> float | None:
    """`value`, or None where it is no finite number: an undefined score is absent."""
    return value if value is not None and math.isfinite(value) else None
