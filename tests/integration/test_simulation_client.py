"""What scripts get of simulation, from the typed client and real services."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import neuropil
from neuropil.simulation import v1
from neuropil.tensors import to_array
from tests.load.processes import REPOSITORY, server

DEMO = REPOSITORY / "data" / "demo" / "deployment.yaml"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for explanation datasets."""
    return tmp_path_factory.mktemp("ours")


@pytest.fixture(scope="module")
def client(ours: Path) -> Iterator[neuropil.Client]:
    arguments = ("--config", str(DEMO), "--port", "0", "--metrics-port", "0")
    allowed = {"NEUROPIL_ALLOWED_PATH_PREFIXES": json.dumps([str(ours)])}
    with (
        server("services.records", *arguments, environment=allowed) as (records, _),
        server(
            "services.simulation", *arguments, environment={"NEUROPIL_SERVICES__RECORDS": records}
        ) as (simulation, _),
        neuropil.connect(records=records, simulation=simulation, timeout=60) as connected,
    ):
        yield connected


def test_simulators(client: neuropil.Client) -> None:
    (simulator,) = client.simulation.simulators()
    assert (simulator.name, simulator.kind, simulator.is_default) == (
        "embedding",
        "embedding",
        True,
    )


def test_simulate_keeps_sequences_apart(client: neuropil.Client) -> None:
    sequences = [[" the", " lion", " of"], [" stone"]]
    simulations = client.simulation.simulate("animals such as lions", sequences)
    assert [each.tokens for each in simulations] == sequences
    for simulation in simulations:
        count = len(simulation.tokens)
        assert simulation.probabilities.shape == (count, 11)
        expected = simulation.probabilities @ np.arange(11)
        np.testing.assert_allclose(simulation.expected_activations, expected, atol=1e-5)
    lion, stone = simulations[0].expected_activations[1], simulations[1].expected_activations[0]
    assert lion > stone


def test_a_calibration_is_fitted_and_applied(client: neuropil.Client) -> None:
    calibration = client.simulation.fit_calibration("linear", [0, 1, 2, 4], [1, 3, 5, 9])
    mapped = client.simulation.apply_calibration(calibration, [[0.5, 10], [np.nan, 0]])
    np.testing.assert_allclose(mapped, np.array([[2, 21], [np.nan, 1]]))
    with pytest.raises(neuropil.NeuropilError) as caught:
        client.simulation.fit_calibration("percentile", [0, 1], [1])
    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "true_activations")
    with pytest.raises(ValueError, match="quadratic"):
        client.simulation.fit_calibration("quadratic", [0], [1])


def test_a_score_comes_with_its_sequences_and_progress(client: neuropil.Client) -> None:
    steps: list[v1.Progress] = []
    scored = client.simulation.score(
        "animals",
        "mlp_post_act",
        1,
        3,
        ["demo"],
        calibration="linear",
        max_sequences=2,
        on_progress=steps.append,
    )
    assert scored.score == scored.scores["ev_correlation"]
    assert len(scored.sequences) == scored.provenance.scored_sequence_count == 2
    true = np.concatenate([each.true_activations for each in scored.sequences])
    expected = np.concatenate([each.expected_activations for each in scored.sequences])
    before = np.concatenate([each.uncalibrated_activations for each in scored.sequences])
    assert scored.score == pytest.approx(np.corrcoef(true, expected)[0, 1])
    r_squared = 1 - np.mean((true - expected) ** 2) / np.mean(true**2)
    assert scored.scores["r_squared"] == pytest.approx(r_squared)
    uncalibrated = 1 - np.mean((true - before) ** 2) / np.mean(true**2)
    assert scored.uncalibrated_scores["r_squared"] == pytest.approx(uncalibrated)
    assert steps[-1].completed == steps[-1].total
    with pytest.raises(neuropil.NeuropilError) as caught:
        client.simulation.score("animals", "mlp_post_act", 1, 100_000, ["demo"])
    assert caught.value.code == "NOT_FOUND"


def test_what_was_scored_can_be_stored(client: neuropil.Client, ours: Path) -> None:
    neuron = ("mlp_post_act", 1, 3)
    scored = client.simulation.score("animals", *neuron, "demo", max_sequences=2)
    assert "message=" not in repr(scored)
    target = str(ours / "animals")
    for given in (scored, scored.message, scored.message.scored_simulation):
        client.records.put_explanation(*neuron, "animals", given, explanation_dataset=target)
    (kept,) = client.records.scored_simulations(*neuron, explanation_dataset=target)
    assert (kept.explanation.text, kept.explanation.score) == ("animals", scored.score)
    for stored, sequence in zip(kept.scored_simulation.sequences, scored.sequences, strict=True):
        simulated = stored.simulation
        assert list(simulated.tokens) == sequence.tokens
        np.testing.assert_array_equal(
            to_array(simulated.expected_activations), sequence.expected_activations
        )
        np.testing.assert_array_equal(
            to_array(simulated.uncalibrated_expected_activations), sequence.uncalibrated_activations
        )
    for given in (scored, scored.message):
        with pytest.raises(ValueError, match="'plants', but 'animals' was scored"):
            client.records.put_explanation(*neuron, "plants", given, explanation_dataset=target)
