"""A second, slow reading of record and explanation files, to compare the fast one with.

It shares nothing with `shared.formats.decoding`: Python's json, dictionaries, and one function a
class. It answers with nested plain values, or None where a file is not to be read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

KNOWN = {
    "ActivationRecord",
    "NeuronId",
    "NeuronRecord",
    "SequenceSimulation",
    "ScoredSequenceSimulation",
    "ScoredSimulation",
    "ScoredExplanation",
    "NeuronSimulationResults",
    "AttentionSimulation",
    "ScoredAttentionSimulation",
    "ScoredAttentionExplanation",
    "AttentionSimulationResults",
}
SCALES = {
    "neuron_activations",
    "simulated_normalized_activations",
    "human_predicted_activations",
}

Read = Callable[[Any], Any]


class Unreadable(Exception):
    """The content is not what a file may hold."""


def record(data: bytes) -> Any:
    """The record in `data`; Unreadable where there is none."""
    return _record(_json(data))


def results(data: bytes) -> Any:
    """The explanations in `data`; Unreadable where there are none."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    if len(lines) != 1:
        raise Unreadable("one line")
    value = _json(lines[0])
    heads = {"attention_head_id", "attention_id"}
    _need(isinstance(value, dict))
    name = value.get("dataclass_name")
    if name == "AttentionSimulationResults" or (
        name != "NeuronSimulationResults" and heads & value.keys() and "neuron_id" not in value
    ):
        return _attention_results(value)
    return _neuron_results(value)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data.decode(), parse_int=float_or_int)
    except (ValueError, RecursionError):
        raise Unreadable("json") from None


def float_or_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 300 else float(digits)


def _need(condition: bool) -> None:
    if not condition:
        raise Unreadable


def _object(value: Any, name: str, renames: dict[str, str]) -> dict[str, Any]:
    _need(isinstance(value, dict))
    named = value.get("dataclass_name")
    if named == "ScoredExplanationOrBaseline":
        named = "ScoredExplanation"
    _need(not isinstance(named, str) or named not in KNOWN or named == name)
    fields = {key: item for key, item in value.items() if key not in renames}
    for old, new in renames.items():
        if old in value and new not in fields:
            fields[new] = value[old]
    return fields


def _field(fields: dict[str, Any], name: str, read: Read, *default: Any) -> Any:
    if name not in fields:
        _need(bool(default))
        return default[0]
    return read(fields[name])


def _list(read: Read) -> Read:
    def items(value: Any) -> Any:
        _need(isinstance(value, list))
        return [read(item) for item in value]

    return items


def _or_none(read: Read) -> Read:
    return lambda value: None if value is None else read(value)


def _text(value: Any) -> str:
    _need(isinstance(value, str))
    return "".join("\ufffd" if 0xD800 <= ord(each) < 0xE000 else each for each in value)


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    _need(isinstance(value, int | float) and not isinstance(value, bool))
    return float(value)


def _score(value: Any) -> float | None:
    return None if value is None else _number(value)


def _whole(value: Any) -> int:
    _need(isinstance(value, int) and not isinstance(value, bool))
    _need(-(2**63) <= value < 2**63)
    return int(value)


def _layer(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return _whole(int(value[:20]))
    return _whole(value)


def _id(value: Any) -> Any:
    fields = _object(value, "NeuronId", {"idx": "neuron_index", "layer": "layer_index"})
    return [_field(fields, "neuron_index", _whole), _field(fields, "layer_index", _layer)]


def _sequence(value: Any) -> Any:
    fields = _object(value, "ActivationRecord", {})
    return [
        _field(fields, "activations", _list(_number)),
        _field(fields, "tokens", _list(_text)),
    ]


def _record(value: Any) -> Any:
    fields = _object(value, "NeuronRecord", {})
    sequences = _list(_sequence)
    moments = ("mean", "variance", "skewness", "kurtosis")
    return [
        _field(fields, "neuron_id", _id),
        _field(fields, "random_sample", sequences, []),
        _field(fields, "random_sample_by_quantile", _or_none(_list(sequences)), None),
        _field(fields, "quantile_boundaries", _or_none(_list(_number)), None),
        *(_field(fields, name, _score, math.nan) for name in moments),
        _field(fields, "most_positive_activation_records", sequences, []),
    ]


def _scale(value: Any) -> str:
    _need(isinstance(value, str) and value in SCALES)
    return str(value)


def _simulation(value: Any) -> Any:
    fields = _object(value, "SequenceSimulation", {"unit": "activation_scale"})
    return [
        _field(fields, "tokens", _list(_text)),
        _field(fields, "expected_activations", _list(_number)),
        _field(fields, "activation_scale", _scale),
        _field(fields, "distribution_values", _list(_list(_number))),
        _field(fields, "distribution_probabilities", _list(_list(_number))),
        _field(fields, "uncalibrated_simulation", _or_none(_simulation), None),
    ]


def _scored_sequence(value: Any) -> Any:
    fields = _object(value, "ScoredSequenceSimulation", {"simulation": "sequence_simulation"})
    return [
        _field(fields, "sequence_simulation", _simulation),
        _field(fields, "true_activations", _list(_number)),
        _field(fields, "ev_correlation_score", _score),
        _field(fields, "rsquared_score", _score, None),
        _field(fields, "absolute_dev_explained_score", _score, None),
    ]


def _scored_simulation(value: Any) -> Any:
    fields = _object(value, "ScoredSimulation", {})
    scores = ("ev_correlation_score", "rsquared_score", "absolute_dev_explained_score")
    return [
        _field(fields, "scored_sequence_simulations", _list(_scored_sequence)),
        *(_field(fields, name, _score, None) for name in scores),
    ]


def _explanation(value: Any) -> Any:
    fields = _object(value, "ScoredExplanation", {"explanation_or_baseline": "explanation"})
    return [
        _field(fields, "explanation", _text),
        _field(fields, "scored_simulation", _scored_simulation),
    ]


def _is_null(value: Any) -> bool:
    keys = ("explanation", "explanation_or_baseline")
    found = [value[key] for key in keys if key in value] if isinstance(value, dict) else []
    return bool(found) and all(each is None for each in found)


def _explanations(read: Read) -> Read:
    def items(value: Any) -> Any:
        _need(isinstance(value, list))
        return [read(item) for item in value if not _is_null(item)]

    return items


def _neuron_results(value: Any) -> Any:
    renames = {"scored_explanation_or_baseline_list": "scored_explanations"}
    fields = _object(value, "NeuronSimulationResults", renames)
    return [
        _field(fields, "neuron_id", _id),
        _field(fields, "scored_explanations", _explanations(_explanation)),
    ]


def _coordinates(value: Any) -> Any:
    _need(isinstance(value, list) and len(value) == 2)
    return [_whole(item) for item in value]


def _attention_simulation(value: Any) -> Any:
    fields = _object(value, "AttentionSimulation", {})
    return [
        _field(fields, "tokens", _list(_text)),
        _field(fields, "token_pair_coords", _coordinates),
        _field(fields, "token_pair_label", _whole),
        _field(fields, "simulation_prediction", _number),
    ]


def _scored_attention(value: Any) -> Any:
    fields = _object(value, "ScoredAttentionSimulation", {})
    return [
        _field(fields, "attention_simulations", _list(_attention_simulation)),
        _field(fields, "roc_auc_score", _score, None),
    ]


def _attention_explanation(value: Any) -> Any:
    fields = _object(value, "ScoredAttentionExplanation", {})
    return [
        _field(fields, "explanation", _text),
        _field(fields, "scored_attention_simulation", _scored_attention),
    ]


def _attention_results(value: Any) -> Any:
    fields = _object(value, "AttentionSimulationResults", {"attention_id": "attention_head_id"})
    return [
        _field(fields, "attention_head_id", _id),
        _field(fields, "scored_explanations", _explanations(_attention_explanation)),
    ]
