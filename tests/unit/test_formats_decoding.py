"""Record and explanation files: what is read, what is refused, and what the refusal names."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from shared.errors import DataLoss
from shared.formats.decoding import decode_neuron_record, decode_simulation_results
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.formats.simulations import (
    ActivationScale,
    AttentionSimulationResults,
    NeuronSimulationResults,
)

RECORD: dict[str, Any] = {
    "dataclass_name": "NeuronRecord",
    "neuron_id": {"dataclass_name": "NeuronId", "neuron_index": 3, "layer_index": 1},
    "random_sample": [
        {"dataclass_name": "ActivationRecord", "activations": [0.5], "tokens": [" a"]}
    ],
    "most_positive_activation_records": [
        {"dataclass_name": "ActivationRecord", "activations": [1.0, -2.0], "tokens": ["b", "c"]}
    ],
}
SIMULATION: dict[str, Any] = {
    "tokens": ["a", "b"],
    "expected_activations": [1.0, 2.0],
    "activation_scale": "neuron_activations",
    "distribution_values": [[0.0, 1.0], [0.0, 1.0]],
    "distribution_probabilities": [[0.5, 0.5], [0.25, 0.75]],
}
RESULTS: dict[str, Any] = {
    "neuron_id": {"neuron_index": 3, "layer_index": 1},
    "scored_explanations": [
        {
            "explanation": "vowels",
            "scored_simulation": {
                "scored_sequence_simulations": [
                    {
                        "sequence_simulation": SIMULATION,
                        "true_activations": [0.0, 3.0],
                        "ev_correlation_score": 1.0,
                    }
                ],
                "ev_correlation_score": 0.75,
            },
        }
    ],
}


def changed(base: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**base, **changes}).encode()


def record(**changes: Any) -> NeuronRecord:
    return decode_neuron_record(changed(RECORD, **changes), "set/1/3.json")


def activations(values: str) -> list[float]:
    data = changed(RECORD, random_sample=[{"activations": "HERE", "tokens": []}])
    data = data.replace(b'"HERE"', values.encode())
    return decode_neuron_record(data, "f").random_sample[0].activations


def test_record_with_class_names() -> None:
    got = record()
    assert got.neuron_id == NeuronId(3, 1)
    assert got.random_sample == [ActivationRecord([0.5], [" a"])]
    assert got.most_positive_activation_records[0].tokens == ["b", "c"]
    assert got.quantile_boundaries is None
    assert got.random_sample_by_quantile is None
    assert got.mean is not None
    assert math.isnan(got.mean)


def test_record_without_class_names() -> None:
    bare = json.loads(json.dumps(RECORD), object_hook=lambda o: drop(o, "dataclass_name"))
    assert decode_neuron_record(json.dumps(bare).encode(), "f").neuron_id == NeuronId(3, 1)


def drop(value: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name != key}


@pytest.mark.parametrize(
    "neuron_id",
    [
        {"idx": 3, "layer": 1},
        {"idx": 3, "layer": "1"},
        {"dataclass_name": "NeuronId", "idx": 3, "layer": "1"},
        {"neuron_index": 3, "layer_index": "1"},
        {"neuron_index": 3, "layer_index": 1, "idx": 9},
        {"neuron_index": 3, "layer": 1, "idx": 9},
        {"dataclass_name": "SomethingNew", "neuron_index": 3, "layer_index": 1},
    ],
)
def test_old_forms_of_an_id(neuron_id: dict[str, Any]) -> None:
    assert record(neuron_id=neuron_id).neuron_id == NeuronId(3, 1)


def test_unknown_class_at_the_top_is_the_expected_one() -> None:
    assert record(dataclass_name="SomethingElse").neuron_id == NeuronId(3, 1)
    assert record(dataclass_name=None).neuron_id == NeuronId(3, 1)


def test_known_other_class_at_the_top_is_refused() -> None:
    with pytest.raises(DataLoss, match="dataclass_name"):
        record(dataclass_name="NeuronSimulationResults")


def test_unknown_fields_are_ignored() -> None:
    assert record(extra_field={"a": [1]}).neuron_id == NeuronId(3, 1)


def test_integers_are_activations() -> None:
    assert activations("[1, -2]") == [1.0, -2.0]


def test_numbers_that_are_not_finite_are_kept() -> None:
    got = activations("[1, NaN, Infinity, -Infinity, null, 1e999, 2]")
    assert got[0] == 1.0
    assert got[2:4] == [math.inf, -math.inf]
    assert math.isnan(got[1])
    assert math.isnan(got[4])
    assert got[5] == math.inf
    assert got[6] == 2.0


def test_huge_integers_are_infinite_activations() -> None:
    assert activations("[1" + "0" * 5000 + "]") == [math.inf]
    assert activations("[NaN, 1" + "0" * 299 + "]")[1] == 1e299


def test_text_is_kept_as_it_is() -> None:
    tokens = ["東", "\u2028", "\ufffd", '"', "\\", "\t\n", "\x00", "🙂", ""]
    sequence = {"activations": [0.0] * len(tokens), "tokens": tokens}
    assert record(random_sample=[sequence]).random_sample[0].tokens == tokens


def test_half_a_surrogate_pair_is_a_replacement_character() -> None:
    data = changed(RECORD, random_sample=[{"activations": [0.0, 1.0], "tokens": ["\ud83d", "ok"]}])
    assert decode_neuron_record(data, "f").random_sample[0].tokens == ["\ufffd", "ok"]


def test_null_moments_and_quantiles() -> None:
    got = record(mean=None, variance=2.5, random_sample_by_quantile=None, quantile_boundaries=[0.1])
    assert got.mean is None
    assert got.variance == 2.5
    assert got.quantile_boundaries == [0.1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"neuron_id": None}, "neuron_id"),
        ({"neuron_id": {"neuron_index": 3}}, "neuron_id.layer_index"),
        ({"neuron_id": {"neuron_index": 3, "layer_index": "x"}}, "neuron_id.layer_index"),
        ({"neuron_id": {"neuron_index": 3, "layer_index": "²"}}, "neuron_id.layer_index"),
        ({"neuron_id": {"neuron_index": "3", "layer_index": 1}}, "neuron_id.neuron_index"),
        ({"neuron_id": {"neuron_index": 1.5, "layer_index": 1}}, "neuron_id.neuron_index"),
        ({"random_sample": None}, "random_sample"),
        ({"random_sample": [{"activations": [1.0]}]}, "random_sample[0].tokens"),
        (
            {"random_sample": [{"activations": ["1.0"], "tokens": ["a"]}]},
            "random_sample[0].activations[0]",
        ),
        (
            {"random_sample": [{"activations": [True], "tokens": ["a"]}]},
            "random_sample[0].activations[0]",
        ),
        (
            {"most_positive_activation_records": [{"activations": [1.0, 2.0], "tokens": ["a", 2]}]},
            "most_positive_activation_records[0].tokens[1]",
        ),
        ({"mean": "large"}, "mean"),
        ({"random_sample_by_quantile": [{}]}, "random_sample_by_quantile[0]"),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(DataLoss) as caught:
        record(**changes)
    assert caught.value.metadata == {"file": "set/1/3.json", "field": field}
    assert caught.value.message.startswith(f"set/1/3.json: {field} is ")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \n",
        b"{",
        b"[]",
        b"3",
        b'"text"',
        b"null",
        b"{} {}",
        json.dumps(RECORD).encode()[:-1],
        json.dumps(RECORD).encode() + b"\n" + json.dumps(RECORD).encode(),
        json.dumps(RECORD).encode() + b"x",
        b"\xff\xfe" + json.dumps(RECORD).encode(),
        b"\xef\xbb\xbf" + json.dumps(RECORD).encode(),
        json.dumps(RECORD).encode().replace(b" a", b"\xc3\x28"),
        b"[" * 100_000,
        b'{"neuron_id":' * 100_000,
        b'{"neuron_id":{"neuron_index":' + b"1" * 5000 + b',"layer_index":"x"}}',
    ],
)
def test_what_is_no_record_is_data_loss_with_its_file(data: bytes) -> None:
    with pytest.raises(DataLoss) as caught:
        decode_neuron_record(data, "set/1/3.json")
    assert caught.value.metadata["file"] == "set/1/3.json"
    assert len(caught.value.message) < 500


def test_pretty_printed_records_are_read() -> None:
    data = json.dumps(RECORD, indent=2).encode() + b"\r\n\n"
    assert decode_neuron_record(data, "f").neuron_id == NeuronId(3, 1)


def results(data: dict[str, Any]) -> NeuronSimulationResults:
    got = decode_simulation_results(json.dumps(data).encode(), "f")
    assert isinstance(got, NeuronSimulationResults)
    return got


def test_results_of_a_neuron() -> None:
    got = results(RESULTS)
    scored = got.scored_explanations[0]
    assert scored.explanation == "vowels"
    assert scored.get_preferred_score() == 0.75
    sequence = scored.scored_simulation.scored_sequence_simulations[0]
    assert sequence.sequence_simulation.activation_scale is ActivationScale.NEURON_ACTIVATIONS
    assert sequence.sequence_simulation.distribution_probabilities[1] == [0.25, 0.75]
    assert sequence.sequence_simulation.uncalibrated_simulation is None


@pytest.mark.parametrize("named", [True, False])
def test_results_with_old_names(named: bool) -> None:
    unit = {**drop(SIMULATION, "activation_scale"), "unit": "neuron_activations", "response": {}}
    unit["uncalibrated_simulation"] = {**unit, "unit": "simulated_normalized_activations"}
    sequence = {"simulation": unit, "true_activations": [0.0, 3.0], "ev_correlation_score": None}
    scored = {
        "explanation_or_baseline": "vowels",
        "scored_simulation": {"scored_sequence_simulations": [sequence]},
    }
    old = {
        "neuron_id": {"idx": 3, "layer": 1},
        "scored_explanation_or_baseline_list": [scored],
    }
    if named:
        old["dataclass_name"] = "NeuronSimulationResults"
        scored["dataclass_name"] = "ScoredExplanationOrBaseline"
        sequence["dataclass_name"] = "ScoredSequenceSimulation"
    got = results(old)
    assert got.neuron_id == NeuronId(3, 1)
    assert got.scored_explanations[0].explanation == "vowels"
    first = got.scored_explanations[0].scored_simulation.scored_sequence_simulations[0]
    uncalibrated = first.sequence_simulation.uncalibrated_simulation
    assert uncalibrated is not None
    assert uncalibrated.activation_scale is ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS
    assert first.ev_correlation_score is None


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "null"])
def test_an_undefined_score_is_absent(score: str) -> None:
    data = json.dumps(RESULTS).replace(
        '"ev_correlation_score": 0.75', f'"ev_correlation_score": {score}'
    )
    assert score in data
    got = decode_simulation_results(data.encode(), "f")
    assert got.scored_explanations[0].get_preferred_score() is None


@pytest.mark.parametrize("key", ["explanation", "explanation_or_baseline"])
def test_null_explanations_are_skipped(key: str) -> None:
    null = {key: None, "scored_simulation": {"scored_sequence_simulations": []}}
    both = {**RESULTS, "scored_explanations": [null, *RESULTS["scored_explanations"]]}
    assert [scored.explanation for scored in results(both).scored_explanations] == ["vowels"]


ATTENTION = {
    "scored_explanations": [
        {
            "explanation": "the first token",
            "scored_attention_simulation": {
                "attention_simulations": [
                    {
                        "tokens": ["a", "b"],
                        "token_pair_coords": [1, 0],
                        "token_pair_label": 1,
                        "simulation_prediction": 0.9,
                    }
                ],
                "roc_auc_score": 0.8125,
            },
        }
    ]
}


@pytest.mark.parametrize("key", ["attention_head_id", "attention_id"])
@pytest.mark.parametrize("name", [None, "AttentionSimulationResults"])
def test_results_of_an_attention_head(key: str, name: str | None) -> None:
    data = {**ATTENTION, key: {"neuron_index": 2, "layer_index": 0}}
    if name:
        data["dataclass_name"] = name
    got = decode_simulation_results(json.dumps(data).encode(), "f")
    assert isinstance(got, AttentionSimulationResults)
    assert got.attention_head_id == NeuronId(2, 0)
    scored = got.scored_explanations[0]
    assert scored.get_preferred_score() == 0.8125
    assert scored.scored_attention_simulation.attention_simulations[0].token_pair_coords == (1, 0)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", None),
        (b"\n \n", None),
        (json.dumps(RESULTS).encode() + b"\n" + json.dumps(RESULTS).encode(), None),
        (json.dumps(RESULTS).encode()[:-5], None),
        (b"[]", None),
        (b"{}", "neuron_id"),
        (b'{"neuron_id":{"idx":1,"layer":0}}', "scored_explanations"),
        (
            json.dumps(RESULTS).replace("neuron_activations", "parsecs").encode(),
            "scored_explanations[0].scored_simulation.scored_sequence_simulations[0]"
            ".sequence_simulation.activation_scale",
        ),
        (
            b'{"attention_id":{"idx":1,"layer":0},"scored_explanations":[{"explanation":"x"}]}',
            "scored_explanations[0].scored_attention_simulation",
        ),
    ],
)
def test_what_is_no_explanation_file_is_data_loss(data: bytes, field: str | None) -> None:
    with pytest.raises(DataLoss) as caught:
        decode_simulation_results(data, "expl/0/1.jsonl")
    assert caught.value.metadata["file"] == "expl/0/1.jsonl"
    assert caught.value.metadata.get("field") == field


def test_blank_lines_and_line_separators_are_no_second_line() -> None:
    text = json.dumps(RESULTS, ensure_ascii=False).replace("vowels", "vow\u2028els")
    got = decode_simulation_results(f"\r\n{text}\r\n\n".encode(), "f")
    assert got.scored_explanations[0].explanation == "vow\u2028els"
