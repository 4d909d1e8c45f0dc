"""Records and explanations read without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.records import files
from shared.errors import DataLoss, NotFound
from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.formats.simulations import (
    NeuronSimulationResults,
    ScoredExplanation,
    ScoredSimulation,
)

RESULTS = NeuronSimulationResults(
    NeuronId(3, 10), [ScoredExplanation("vowels", ScoredSimulation([], 0.5))]
)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    record = NeuronRecord(NeuronId(3, 10), random_sample=[ActivationRecord([1.0], ["a"])])
    write_atomically(tmp_path / "10/3.json", encode(record))
    write_atomically(tmp_path / "9/20.json", encode(record))
    write_atomically(tmp_path / "9/3.json", b"{")
    write_atomically(tmp_path / "10/3.jsonl", encode(RESULTS))
    write_atomically(tmp_path / "10/4.jsonl", b"")
    return str(tmp_path)


def test_records(dataset: str) -> None:
    assert files.load_neuron(dataset, 10, "3").random_sample[0].tokens == ["a"]
    assert files.neuron_exists(dataset, "9", 20)
    assert not files.neuron_exists(dataset, 9, 21)
    with pytest.raises(NotFound, match=r"10/4\.json"):
        files.load_neuron(dataset, 10, 4)
    with pytest.raises(DataLoss, match=r"9/3\.json"):
        files.load_neuron(dataset, 9, 3)


async def test_records_awaited(dataset: str) -> None:
    assert (await files.load_neuron_async(dataset, 10, 3)).neuron_id == NeuronId(3, 10)
    # In a notebook the synchronous one is called with a loop that runs.
    assert files.load_neuron(dataset, 10, 3).neuron_id == NeuronId(3, 10)


def test_explanations(dataset: str) -> None:
    assert files.load_neuron_explanations(dataset, 10, 3) == RESULTS
    assert files.load_neuron_explanations(dataset, 10, 99) is None
    with pytest.raises(DataLoss):
        files.load_neuron_explanations(dataset, 10, 4)


async def test_explanations_awaited(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await files.load_neuron_explanations_async(dataset, "10", "3") == RESULTS
    assert await files.load_neuron_explanations_async(dataset, "11", "3") is None
    assert await files.read_explanation_file(f"{dataset}/10/3.jsonl") == RESULTS
    assert await files.read_explanation_file(f"{dataset}/10/5.jsonl") is None
    monkeypatch.chdir(f"{dataset}/10")
    assert await files.read_explanation_file("3.jsonl") == RESULTS


def test_listings(dataset: str) -> None:
    assert files.get_sorted_layers(dataset) == ["9", "10"]
    assert files.get_numerical_subdirs(dataset) == ["9", "10"]
    assert files.get_sorted_neuron_indices(dataset, "9") == [3, 20]
    assert files.get_sorted_neuron_indices_from_explanations(dataset, 10) == [3, 4]
    with pytest.raises(NotFound):
        files.get_sorted_neuron_indices(dataset, 8)
