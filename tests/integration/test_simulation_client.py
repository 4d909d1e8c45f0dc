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
    state = {"NEUROPIL_SIMULATION_STATE": str(ours / "state")}
    with (
        server("services.records", *arguments, environment=allowed) as (records, _),
        server(
            "services.simulation",
            *arguments,
            environment=state | {"NEUROPIL_SERVICES__RECORDS": records},
        ) as (simulation, _),
        neuropil.connect(records=records, simulation=simulation, timeout=60) as connected,
    ):
        yield connected


def test_simulators(client: neuropil.Client) -> None:
    simulators = client.simulation.simulators()
    (simulator,) = [each for each in simulators if each.is_default]
    assert (simulator.name, simulator.kind) == ("embedding", "embedding")
    assert not simulator.runs_language_model
    assert simulator.state in {"loading", "ready"}
    (explainer,) = [each for each in client.simulation.explainers() if each.is_default]
    assert (explainer.name, explainer.kind, explainer.state) == ("context", "context", "ready")


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


def test_sequences_of_ones_own_are_scored(client: neuropil.Client) -> None:
    animals = [[" a", " lion", " ran"], [" the", " stone", " fell"], [" one", " horse", " stood"]]
    others = [[" my", " lion", " sat"], [" an", " old", " wall"]]
    scored = client.simulation.score_sequences(
        "animals such as lions and horses",
        animals,
        [[0, 4, 0], [0, 0, 0.5], np.array([0, 3, 0])],
        calibration_sequences=others,
        calibration_activations=[[0, 5, 0], [0, 0, 0]],
        calibration="linear",
    )
    assert scored.score is not None
    assert scored.score > 0.9
    assert [each.tokens for each in scored.sequences] == animals
    assert scored.provenance.calibration_sequence_count == 2
    with pytest.raises(neuropil.NeuropilError) as caught:
        client.simulation.score_sequences(
            *("animals", animals[:1], [[0, 4, 0]]),
            calibration_sequences=animals[:1],
            calibration_activations=[[0, 4, 0]],
        )
    assert caught.value.code == "INVALID_ARGUMENT"
    plain = client.simulation.score_sequences(
        "animals", animals[:1], [[0, 4, 0]], calibration="none"
    )
    assert plain.sequences[0].true_activations.tolist() == [0, 4, 0]


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


def test_many_explanations_of_a_sequence(client: neuropil.Client) -> None:
    tokens = [" the", " lion", " of"]
    explanations = ["animals such as lions", "the word 'of'"]
    together = client.simulation.simulate_explanations(explanations, tokens)
    assert [int(np.argmax(each.expected_activations)) for each in together] == [1, 2]
    for explanation, each in zip(explanations, together, strict=True):
        (alone,) = client.simulation.simulate(explanation, [tokens])
        np.testing.assert_array_equal(each.probabilities, alone.probabilities)
        assert each.validity.valid_token_count == len(tokens)


def test_a_stored_calibration_is_applied_by_its_id(client: neuropil.Client) -> None:
    sequences = [["a", "b"], ["c", "d"]]
    fitted = client.simulation.fit_calibration(
        "isotonic", [0, 1, 2, 4], [1, 0, 5, 9], sequences=sequences
    )
    kept = client.simulation.store_calibration(fitted)
    assert client.simulation.stored_calibration(kept) == fitted
    for calibration in (fitted, kept):
        mapped = client.simulation.apply_calibration(calibration, [0, 0.5, 3])
        np.testing.assert_allclose(mapped, [0.5, 0.5, 7])
    (simulation,) = client.simulation.simulate("animals", [[" lion"]], calibration_id=kept)
    assert 0.5 <= simulation.expected_activations[0] <= 9
    with pytest.raises(neuropil.NeuropilError) as caught:
        client.simulation.stored_calibration(kept[:-1] + ("0" if kept[-1] != "0" else "1"))
    assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "CALIBRATION_NOT_FOUND")


def test_proposed_explanations_are_scored_with_where_they_come_from(
    client: neuropil.Client,
) -> None:
    neuron = ("mlp_post_act", 3, 203)
    proposals = client.simulation.propose(*neuron, "demo", count=2)
    assert 1 <= len(proposals.explanations) <= 2
    proposed = proposals.explanations[0]
    scored = client.simulation.score(
        proposed.explanation, *neuron, "demo", explanation_provenance=proposed.provenance
    )
    assert scored.method == "simulation"
    assert scored.provenance.explanation.explainer == "context"
    low, high = scored.preferred.interval or (0.0, 0.0)
    assert scored.score is not None
    assert low < high
    assert scored.details["ev_correlation"] == scored.preferred
    undefined = client.simulation.score("zzz", *neuron, "demo", calibration="none", max_sequences=1)
    for name, score in undefined.details.items():
        assert (score.value is None) == bool(score.undefined_reason), name
    with pytest.raises(ValueError, match="guessing"):
        client.simulation.score("x", *neuron, "demo", method="guessing")


def test_judgements_are_read(client: neuropil.Client) -> None:
    judged = client.simulation.score(
        "the word 'ref'", "mlp_post_act", 3, 203, "demo", method="fuzzing", max_judgements=8
    )
    assert judged.method == "fuzzing"
    assert judged.score == judged.scores["balanced_accuracy"]
    assert len(judged.judgements) <= 8
    assert all(each.marked_positions and each.probability is not None for each in judged.judgements)
    with pytest.raises(ValueError, match="no place for scores by fuzzing"):
        client.records.put_explanation(
            "mlp_post_act", 3, 203, "the word 'ref'", judged, explanation_dataset="/ours"
        )


def test_a_bulk_run_is_an_iterator_that_goes_on(client: neuropil.Client) -> None:
    requests = [
        client.simulation.score_request("animals", "mlp_post_act", 1, index, "demo")
        for index in (3, 4, 100_000)
    ]
    events = client.simulation.bulk_score(requests, "a run", max_concurrency=1)
    first = next(event for event in events if isinstance(event, neuropil.BulkResult))
    events.close()
    again = list(client.simulation.bulk_score(requests, "a run"))
    results = {each.position: each for each in again if isinstance(each, neuropil.BulkResult)}
    assert results[first.position].reused
    assert results[0].scored is not None
    assert results[0].scored.sequences
    assert (results[0].put, results[0].failure) == ("not_asked", "")
    assert results[2].scored is None
    assert (results[2].failure_reason, bool(results[2].failure)) == ("RECORD_NOT_FOUND", True)
    summary = again[-1]
    assert isinstance(summary, neuropil.BulkSummary)
    assert (summary.done, summary.failed, summary.left, summary.stopped_by) == (2, 1, 0, "")
    with pytest.raises(neuropil.NeuropilError) as caught:
        list(client.simulation.bulk_score(requests[:1], "a run"))
    assert caught.value.reason == "RESUME_KEY_USED"
