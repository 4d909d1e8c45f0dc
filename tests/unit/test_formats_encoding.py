"""Writing: what is written is read back, rounding, merging, and files that appear whole."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.formats.decoding import decode_neuron_record, decode_simulation_results
from shared.formats.encoding import encode, merge_explanations, round_significant, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.formats.simulations import (
    ActivationScale,
    NeuronSimulationResults,
    ScoredExplanation,
    ScoredSequenceSimulation,
    ScoredSimulation,
    SequenceSimulation,
)

# Any text that a file can hold: U+2028, NUL and unassigned ones too, but no half surrogate pairs.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
numbers = st.floats(width=64)
sequences = st.builds(
    ActivationRecord,
    activations=st.lists(numbers, max_size=4),
    tokens=st.lists(texts, max_size=4),
)
moments = st.none() | numbers
records = st.builds(
    NeuronRecord,
    neuron_id=st.builds(NeuronId, st.integers(0, 2**40), st.integers(0, 200)),
    random_sample=st.lists(sequences, max_size=3),
    random_sample_by_quantile=st.none() | st.lists(st.lists(sequences, max_size=2), max_size=2),
    quantile_boundaries=st.none() | st.lists(numbers, max_size=3),
    mean=moments,
    variance=moments,
    skewness=moments,
    kurtosis=moments,
    most_positive_activation_records=st.lists(sequences, max_size=3),
)


def finite_only(value: Any) -> Any:
    """As builtins, with every non-finite number None: what a file keeps of an object."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite_only(item) for item in value]
    if isinstance(value, dict):
        return {key: finite_only(item) for key, item in value.items()}
    return value


def refuse(constant: str) -> None:
    """What JSON has no word for must not be written."""
    raise AssertionError(f"{constant} is no JSON")


@settings(deadline=None)
@given(records)
def test_a_record_is_read_as_it_was_written(record: NeuronRecord) -> None:
    data = encode(record)
    assert b"\n" not in data
    json.loads(data, parse_constant=refuse)
    again = decode_neuron_record(data, "f")
    before, after = msgspec.to_builtins(record), msgspec.to_builtins(again)
    assert finite_only(after) == finite_only(before)


def test_every_object_names_its_class() -> None:
    record = NeuronRecord(NeuronId(1, 2), random_sample=[ActivationRecord([math.inf], ["a"])])
    data = json.loads(encode(record))
    assert data["dataclass_name"] == "NeuronRecord"
    assert data["neuron_id"]["dataclass_name"] == "NeuronId"
    assert data["random_sample"][0] == {
        "dataclass_name": "ActivationRecord",
        "activations": [None],
        "tokens": ["a"],
    }
    assert data["mean"] is None


def test_half_a_surrogate_pair_is_written_as_a_replacement_character() -> None:
    record = NeuronRecord(NeuronId(1, 2), random_sample=[ActivationRecord([1.0], ["\ud83d"])])
    assert decode_neuron_record(encode(record), "f").random_sample[0].tokens == ["\ufffd"]


@settings(deadline=None)
@given(st.lists(st.floats(width=64), min_size=1, max_size=8), st.integers(1, 17))
@example([1.5e308, -1.7e308], 1)
def test_rounding_is_decimal_rounding(values: list[float], digits: int) -> None:
    rounded = round_significant(np.array(values), digits)
    for value, got in zip(values, rounded.tolist(), strict=True):
        if not math.isfinite(value):
            assert got == value or (math.isnan(got) and math.isnan(value))
            continue
        if not math.isfinite(float(f"{value:.{digits - 1}e}")):
            assert got == value
            continue
        # The decimal that is printed is within half a unit of the last digit kept.
        assert float(f"{got:.{digits - 1}e}") == got
        unit = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1) if value else 1.0
        assert abs(got - value) <= 0.5001 * unit + math.ulp(value)


def test_rounded_records_are_short() -> None:
    record = NeuronRecord(
        NeuronId(0, 0),
        random_sample=[ActivationRecord([0.123456789, -1234.5678, 0.0, math.nan], list("abcd"))],
        random_sample_by_quantile=[[ActivationRecord([2 / 3], ["x"])]],
        quantile_boundaries=[1 / 3],
        mean=0.1234567,
    )
    data = json.loads(encode(record, significant_digits=4))
    assert data["random_sample"][0]["activations"] == [0.1235, -1235.0, 0.0, None]
    assert data["random_sample_by_quantile"][0][0]["activations"] == [0.6667]
    assert data["quantile_boundaries"] == [0.3333]
    assert data["mean"] == 0.1234567
    assert record.random_sample[0].activations[0] == 0.123456789


def test_no_significant_digit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        round_significant(np.array([1.0]), 0)


def explained(*explanations: tuple[str, float]) -> NeuronSimulationResults:
    return NeuronSimulationResults(
        NeuronId(0, 0),
        [ScoredExplanation(text, ScoredSimulation([], score)) for text, score in explanations],
    )


def test_merging_by_text() -> None:
    merged = merge_explanations(
        explained(("a", 0.1), ("b", 0.2)), explained(("b", 0.9), ("c", 0.3))
    )
    assert [(s.explanation, s.get_preferred_score()) for s in merged.scored_explanations] == [
        ("a", 0.1),
        ("b", 0.9),
        ("c", 0.3),
    ]
    assert merge_explanations(None, merged) is merged


def test_results_are_read_as_they_were_written() -> None:
    simulation = SequenceSimulation(
        ["a", "\u2028"],
        [1.0, 2.5],
        ActivationScale.NEURON_ACTIVATIONS,
        [[0.0, 1.0]] * 2,
        [[0.5, 0.5]] * 2,
    )
    results = explained(("a", 0.5))
    results.scored_explanations[0].scored_simulation.scored_sequence_simulations.append(
        ScoredSequenceSimulation(simulation, [0.0, 3.0], None)
    )
    data = encode(results)
    assert decode_simulation_results(data + b"\n", "f") == results


def test_a_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "0" / "1.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["1.json"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    folder = tmp_path / "0" / "1.json"
    (folder / "occupied").mkdir(parents=True)
    with pytest.raises(OSError, match=r"1\.json"):
        write_atomically(folder, b"data")
    assert [entry.name for entry in folder.parent.iterdir()] == ["1.json"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    contents = {bytes([kind]) * 100_000 for kind in b"ab"}
    write_atomically(path, b"a" * 100_000)
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        write_atomically(path, (b"b" if turn % 2 else b"a") * 100_000)
    stop.set()
    reader.join()
    assert seen <= contents
