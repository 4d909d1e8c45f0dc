"""Simulations that would be far larger in a file, or in an answer, than where they came from."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_tensor
from services.records.simulation_messages import serialized_results
from services.records.storage.folders import Folder
from services.records.stored_explanations import stored_explanation, stored_simulation
from shared.errors import ResourceExhausted
from shared.formats.records import NeuronId
from shared.formats.simulations import (
    ActivationScale,
    NeuronSimulationResults,
    ScoredExplanation,
    ScoredSequenceSimulation,
    ScoredSimulation,
    SequenceSimulation,
)


@pytest.mark.parametrize(
    "field",
    ["distribution_values", "distribution_probabilities", "uncalibrated_distribution_values"],
)
def test_values_that_would_be_repeated_for_too_many_tokens(field: str) -> None:
    count = 20_000
    simulated = simulation.SequenceSimulation(
        tokens=["x"] * count,
        expected_activations=to_tensor(np.zeros(count)),
        activation_scale=simulation.ACTIVATION_SCALE_NEURON_ACTIVATIONS,
        uncalibrated_expected_activations=to_tensor(np.zeros(count)),
    )
    getattr(simulated, field).CopyFrom(to_tensor(np.zeros(count)))
    sequence = simulation.ScoredSequenceSimulation(
        simulation=simulated, true_activations=to_tensor(np.zeros(count))
    )
    large = v1.PutExplanationRequest(
        explanation="x", scored_simulation=simulation.ScoredSimulation(sequences=[sequence])
    )
    tracemalloc.start()
    try:
        with pytest.raises(ResourceExhausted) as caught:
            stored_explanation(large, by_token_pair=False)
        largest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.reason == "FILE_TOO_LARGE"
    assert largest < 20 * 2**20


def test_values_for_all_tokens_are_repeated_in_the_file() -> None:
    simulated = simulation.SequenceSimulation(
        tokens=["a", "b"],
        expected_activations=to_tensor(np.zeros(2)),
        activation_scale=simulation.ACTIVATION_SCALE_NEURON_ACTIVATIONS,
        distribution_values=to_tensor(np.array([0.0, 1.5, np.nan])),
    )
    sequence = simulation.ScoredSequenceSimulation(
        simulation=simulated, true_activations=to_tensor(np.zeros(2))
    )
    message = simulation.ScoredSimulation(sequences=[sequence])
    stored = stored_simulation(message, "scored_simulation").scored_sequence_simulations[0]
    assert stored.sequence_simulation.distribution_values == [[0.0, 1.5], [0.0, 1.5]]


def test_a_long_distribution_beside_many_short_ones_is_not_sent() -> None:
    rows = [[0.5]] * 100_000 + [[0.5] * 10_000]
    stored = SequenceSimulation(
        tokens=["x"] * len(rows),
        expected_activations=[0.0] * len(rows),
        activation_scale=ActivationScale.NEURON_ACTIVATIONS,
        distribution_values=rows,
        distribution_probabilities=rows,
    )
    scored = ScoredSimulation(
        [ScoredSequenceSimulation(stored, [0.0] * len(rows), None, None, None)], None, None, None
    )
    results = NeuronSimulationResults(NeuronId(0, 0), [ScoredExplanation("x", scored)])
    with pytest.raises(ResourceExhausted) as caught:
        serialized_results(results, Folder.trusted("/folder"), "f", 2**24)
    assert caught.value.reason == "REPLY_TOO_LARGE"


def ragged(tokens: int, values: int, sequences: int, explanations: int) -> NeuronSimulationResults:
    """Much larger as tables than in its file: one long distribution among short ones."""
    rows = [[0.5] * values] + [[0.5]] * (tokens - 1)
    zeros = [0.0] * tokens
    stored = SequenceSimulation(
        tokens=["x"] * tokens,
        expected_activations=zeros,
        activation_scale=ActivationScale.NEURON_ACTIVATIONS,
        distribution_values=rows,
        distribution_probabilities=rows,
    )
    sequence = ScoredSequenceSimulation(stored, zeros, None, None, None)
    scored = ScoredSimulation([sequence] * sequences, None, None, None)
    return NeuronSimulationResults(NeuronId(0, 0), [ScoredExplanation("x", scored)] * explanations)


def too_large(results: NeuronSimulationResults, max_bytes: int) -> tuple[ResourceExhausted, int]:
    """The error that it is refused with, and the most memory that this took."""
    tracemalloc.start()
    try:
        with pytest.raises(ResourceExhausted) as caught:
            serialized_results(results, Folder.trusted("/folder"), "/folder/0/0.jsonl", max_bytes)
        return caught.value, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_explanation_of_many_sequences_is_not_made_before_it_is_refused() -> None:
    # 1.6 MB a sequence, 1.6 GB in all.
    error, largest = too_large(ragged(100, 1000, sequences=1000, explanations=1), 2**24)
    assert error.reason == "REPLY_TOO_LARGE"
    assert error.metadata["limit"] == str(2**24)
    assert "/folder/0/0.jsonl" in error.message
    assert largest < 100 * 2**20


def test_a_file_of_many_such_explanations_is_not_made_whole() -> None:
    # 16 MB an explanation, 16 GB in all.
    error, largest = too_large(ragged(100, 1000, sequences=10, explanations=1000), 2**25)
    assert error.reason == "REPLY_TOO_LARGE"
    assert largest < 400 * 2**20


def test_explanations_that_fit_are_one_message_each() -> None:
    results = ragged(2, 3, sequences=2, explanations=3)
    messages = serialized_results(results, Folder.trusted("/folder"), "f", 2**20)
    parsed = [v1.GetScoredSimulationsResponse.FromString(each) for each in messages]
    assert [each.explanation.text for each in parsed] == ["x"] * 3
    assert [len(each.scored_simulation.sequences) for each in parsed] == [2] * 3
