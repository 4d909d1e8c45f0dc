"""The table of docs/formats.md: every row of it is a case here, and the other way round."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import DataLoss, ResourceExhausted
from shared.formats.decoding import decode_neuron_record, decode_simulation_results

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"

_SEQUENCE = '{"dataclass_name":"ActivationRecord","activations":[1.5],"tokens":["a"]}'
_ID = '{"dataclass_name":"NeuronId","neuron_index":3,"layer_index":1}'
NAMED = (
    f'{{"dataclass_name":"NeuronRecord","neuron_id":{_ID},"random_sample":[{_SEQUENCE}],'
    '"mean":0.5,"most_positive_activation_records":[]}'
)
_SIMULATION = (
    '{"dataclass_name":"SequenceSimulation","tokens":["a"],"expected_activations":[1.5],'
    '"activation_scale":"neuron_activations","distribution_values":[],'
    '"distribution_probabilities":[],"uncalibrated_simulation":null}'
)
_SCORED_SEQUENCE = (
    f'{{"dataclass_name":"ScoredSequenceSimulation","sequence_simulation":{_SIMULATION},'
    '"true_activations":[1.5],"ev_correlation_score":0.5}'
)
_EXPLANATION = (
    '{"dataclass_name":"ScoredExplanation","explanation":"a","scored_simulation":'
    f'{{"dataclass_name":"ScoredSimulation","scored_sequence_simulations":[{_SCORED_SEQUENCE}],'
    '"ev_correlation_score":0.5}}'
)
EXPLAINED = (
    f'{{"dataclass_name":"NeuronSimulationResults","neuron_id":{_ID},'
    f'"scored_explanations":[{_EXPLANATION}]}}'
)
_PAIRS = (
    '{"dataclass_name":"ScoredAttentionExplanation","explanation":"a","scored_attention_simulation":'
    '{"dataclass_name":"ScoredAttentionSimulation","attention_simulations":[{"dataclass_name":'
    '"AttentionSimulation","tokens":["a"],"token_pair_coords":[0,0],"token_pair_label":1,'
    '"simulation_prediction":1.5}],"roc_auc_score":0.5}}'
)
ATTENTION = (
    f'{{"dataclass_name":"AttentionSimulationResults","attention_head_id":{_ID},'
    f'"scored_explanations":[{_PAIRS}]}}'
)
BASES = {"record": NAMED, "explanations": EXPLAINED, "attention": ATTENTION}

Change = Callable[[str], str | bytes]


def _replaced(pattern: str, by: str, count: int = 0) -> Change:
    def change(text: str) -> str:
        changed, number = re.subn(pattern, lambda _: by, text, count=count)
        assert number
        return changed

    return change


def _unnamed(text: str) -> str:
    return re.sub(r'"dataclass_name":"\w+",', "", text)


def _old(text: str) -> str:
    for new, old in (
        ("neuron_index", "idx"),
        ("layer_index", "layer"),
        ("activation_scale", "unit"),
        ("sequence_simulation", "simulation"),
        ('explanation":', 'explanation_or_baseline":'),
        ("attention_head_id", "attention_id"),
    ):
        if '"ScoredAttentionExplanation"' in text and new.startswith("explanation"):
            continue  # An attention head's explanation never had another name.
        text = text.replace(f'"{new}', f'"{old}')
    if '"NeuronSimulationResults"' in text:
        text = text.replace('"scored_explanations"', '"scored_explanation_or_baseline_list"')
    return text.replace('"ScoredExplanation"', '"ScoredExplanationOrBaseline"')


def _also_null(text: str) -> str:
    null = '"scored_explanations":[{"explanation":null},'
    return text.replace('"scored_explanations":[', null)


def _second_line(text: str) -> str:
    return f"{text}\n{text}"


_same: Change = lambda text: text  # noqa: E731
_id_is = lambda index: _replaced('"neuron_index":3', f'"neuron_index":{index}')  # noqa: E731
_value_is = lambda value: _replaced(r"1\.5", value)  # noqa: E731

# By row: which of the bases it is about (all if None), and changes that each make such a file.
CASES: dict[str, tuple[set[str] | None, list[Change]]] = {
    "all class names": (None, [_same]),
    "no class names": (None, [_unnamed]),
    "the old class name `ScoredExplanationOrBaseline`": (
        {"explanations"},
        [_replaced('"ScoredExplanation"', '"ScoredExplanationOrBaseline"')],
    ),
    "the old field names, with class names": (None, [_old]),
    "the old field names, without class names": (None, [lambda text: _unnamed(_old(text))]),
    "both an old and a new name of a field": (
        None,
        [_replaced('"neuron_index":3', '"idx":9,"neuron_index":3,"layer":7')],
    ),
    "an unknown class name, at the top or within": (
        None,
        [
            _replaced('^{"dataclass_name":"[A-Za-z]+"', '{"dataclass_name":"New"'),
            _replaced('"NeuronId"', '"Identity"'),
            _replaced('"NeuronId"', "null"),
            _replaced('"NeuronId"', '"\\ud800"'),
        ],
    ),
    "a known class name in a wrong place": (
        None,
        [_replaced('"NeuronId"', '"ActivationRecord"'), _replaced('"NeuronId"', '"NeuronRecord"')],
    ),
    "a layer written as a string of digits": (
        None,
        [
            _replaced('"layer_index":1', '"layer_index":"1"'),
            _replaced('"layer_index":1', '"layer":"01"'),
        ],
    ),
    "a layer written as another string": (
        None,
        [
            _replaced('"layer_index":1', f'"layer_index":{each}')
            for each in ('"x"', '""', '"-1"', '"²"')
        ],
    ),
    "a neuron index written as a string": (None, [_id_is('"3"')]),
    "an index of more than 64 bits": (
        None,
        [_id_is(2**63), _id_is(-(2**63) - 1), _id_is("9" * 5000), _replaced(
            '"layer_index":1', '"layer_index":"%s"' % ("9" * 40))],
    ),
    "an index written as 1.0": (None, [_id_is("1.0"), _id_is("1e2")]),
    "an unknown field": (
        None,
        [_replaced('"neuron_index"', '"other":{"a":[1,{"\\ud800":"\\ud800"}]},"neuron_index"')],
    ),
    "a required field missing": (
        None,
        [
            _replaced('"neuron_index":3,', ""),
            lambda text: re.sub('"tokens":', '"text":', text, count=1),
        ],
    ),
    "an optional field missing": (
        None,
        [
            lambda text: text.replace('"mean":0.5,', "")
            .replace(',"roc_auc_score":0.5', "")
            .replace(',"ev_correlation_score":0.5}}', "}}")
            .replace(',"uncalibrated_simulation":null', "")
        ],
    ),
    "a field of a wrong type": (
        None,
        [
            _replaced(r'"tokens":\["a"\]', f'"tokens":{value}')
            for value in ("null", '"a"', "{}", "[1]", "[null]", '[["a"]]', "true")
        ]
        + [_replaced(_ID, value) for value in ("null", "[]", "3", '"3"')],
    ),
    "activations NaN, Infinity, -Infinity or null": (
        None,
        [_value_is(value) for value in ("NaN", "Infinity", "-Infinity", "null")],
    ),
    "an activation 1e999, or an integer of thousands of digits": (
        None,
        [_value_is("1e999"), _value_is("1" * 5000)],
    ),
    "an activation -0.0": (None, [_value_is("-0.0")]),
    'an activation written as "2" or true': (None, [_value_is('"2"'), _value_is("true")]),
    "an explanation that is null": (
        {"explanations", "attention"},
        [_also_null, lambda text: _also_null(text).replace(":null}", ":null,\"other\":1}")],
    ),
    "half of a surrogate pair in a text": (
        None,
        [_replaced('"a"', '"\\ud83d"'), _replaced('"a"', '"\\uDE00"')],
    ),
    "one key twice in an object": (
        None,
        [_replaced('"neuron_index":3', '"neuron_index":9,"neuron_index":3')],
    ),
    "white space and blank lines around": (None, [lambda text: f"\n \r\n\t{text} \r\n\n"]),
    "a byte order mark": (None, [lambda text: "\ufeff" + text]),
    "bytes that are no UTF-8 in a text": (
        None,
        [
            lambda text: text.encode().replace(b'"a"', b'"\xff"'),
            lambda text: text.encode().replace(b'"a"', b'"\xed\xa0\x80"'),
            lambda text: text.encode("utf-16"),
        ],
    ),
    "nothing, or white space alone": (None, [lambda _: "", lambda _: " \r\n\t"]),
    "the end missing": (
        None,
        [lambda text, end=end: text[:end] for end in range(-300, -1, 7)],  # type: ignore[misc]
    ),
    "a second line that is not blank": (
        None,
        [_second_line, lambda text: f"{text}\nx", lambda text: f"{text}\n\n[]"],
    ),
    "another JSON value than an object": (
        None,
        [lambda _, value=value: value for value in ("[]", "null", "1", '"a"', "true", "NaN")],  # type: ignore[misc]
    ),
    "lists or objects nested 100,000 deep": (
        None,
        [
            lambda _: "[" * 100_000,
            lambda _: '{"neuron_id":' * 100_000,
            _replaced('"neuron_index"', '"x":' + "[" * 100_000 + "]" * 100_000 + ',"neuron_index"'),
        ],
    ),
    "content that could take more than 900 MiB once parsed": (
        None,
        [
            lambda text: text.replace('["a"]', '["a"' + ',"a"' * 11_000_000 + "]"),
            lambda text: text.replace("1.5", "NaN" + ",[]" * 4_000_000),
        ],
    ),
}  # fmt: skip

# What the named parts must be where a row says so; otherwise as in the base.
EXPECTED: dict[str, Callable[[Any], bool]] = {
    "activations NaN, Infinity, -Infinity or null": lambda value: not math.isfinite(value),
    "an activation 1e999, or an integer of thousands of digits": lambda value: value == math.inf,
    "an activation -0.0": lambda value: repr(value) == "-0.0",
}


def table() -> dict[str, str]:
    section = PAGE.read_text().split("## What is read")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| (.+) \|$", section, re.MULTILINE)
    return dict(rows[1:])


def test_every_row_of_the_table_is_a_case() -> None:
    assert list(table()) == list(CASES)


@pytest.mark.parametrize("row", CASES)
def test_a_row_of_the_table(row: str) -> None:
    promised = table()[row]
    bases, changes = CASES[row]
    for name in sorted(bases or BASES):
        for change in changes:
            changed = change(BASES[name])
            data = changed if isinstance(changed, bytes) else changed.encode()
            if promised.startswith("read"):
                _check_read(row, name, data)
                continue
            failure = DataLoss if promised == "DATA_LOSS" else ResourceExhausted
            with pytest.raises(failure) as caught:
                _decode(name, data)
            assert caught.value.metadata["file"] == "f"
            assert len(caught.value.message) < 500


def _decode(name: str, data: bytes) -> Any:
    return (decode_neuron_record if name == "record" else decode_simulation_results)(data, "f")


def _check_read(row: str, name: str, data: bytes) -> None:
    got = _decode(name, data)
    if name == "record":
        component, (sequence,) = got.neuron_id, got.random_sample
        value, tokens = sequence.activations[0], sequence.tokens
    elif name == "explanations":
        (explanation,) = got.scored_explanations
        (sequence,) = explanation.scored_simulation.scored_sequence_simulations
        component = got.neuron_id
        value, tokens = sequence.true_activations[0], sequence.sequence_simulation.tokens
    else:
        (explanation,) = got.scored_explanations
        (sequence,) = explanation.scored_attention_simulation.attention_simulations
        component = got.attention_head_id
        value, tokens = sequence.simulation_prediction, sequence.tokens
    assert (component.neuron_index, component.layer_index) == (3, 1)
    assert tokens == (["\ufffd"] if row.startswith("half of") else ["a"])
    assert EXPECTED.get(row, lambda each: each == 1.5)(value)


def test_the_examples_are_read_by_their_names() -> None:
    record, explanations = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    read = decode_neuron_record(record.encode(), "f")
    assert (read.neuron_id.neuron_index, read.max_activation, read.mean) == (5, 3.5, 0.01)
    assert set(json.loads(record)) - {"dataclass_name"} == set(read.__struct_fields__)
    line = json.dumps(json.loads(explanations)).encode()
    (scored,) = decode_simulation_results(line, "f").scored_explanations
    assert (scored.explanation, scored.get_preferred_score()) == ("pets", 0.9)
    empty = json.loads(explanations)
    simulation = empty["scored_explanations"][0]["scored_simulation"]
    simulation |= {"scored_sequence_simulations": [], "ev_correlation_score": None}
    (bare,) = decode_simulation_results(json.dumps(empty).encode(), "f").scored_explanations
    assert bare.get_preferred_score() is None


def test_the_bases_are_what_the_writer_makes() -> None:
    assert {name: json.loads(text)["dataclass_name"] for name, text in BASES.items()} == {
        "record": "NeuronRecord",
        "explanations": "NeuronSimulationResults",
        "attention": "AttentionSimulationResults",
    }
