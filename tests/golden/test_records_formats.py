"""Formats against the reference: its files, its token-pair arithmetic, its splits."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import DataLoss, InvalidArgument
from shared.formats import token_pairs
from shared.formats.decoding import decode_neuron_record, decode_simulation_results
from shared.formats.encoding import encode
from shared.formats.records import (
    ActivationRecord,
    ActivationRecordSliceParams,
    NeuronId,
    NeuronRecord,
)

pytestmark = pytest.mark.golden


# The files that can't be read, and the field that the error names.
CORRUPT = {
    "mlp/0/17.json": None,
    "mlp/0/22.json": "neuron_id",
    "mlp/0/26.json": "neuron_id",
    "expl/0/7.jsonl": None,
    "expl/0/8.jsonl": None,
    "expl/0/12.jsonl": None,
}


@pytest.fixture
def read(golden: Path) -> Path:
    return golden / "read"


def load(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def test_every_file_is_read_or_named(read: Path) -> None:
    refused: dict[str, str | None] = {}
    num_read = 0
    for path in sorted([*read.glob("*/*/*.json*"), *read.glob("cached_explanations/*/*/*/*")]):
        name = str(path.relative_to(read))
        try:
            if path.suffix == ".json":
                record = decode_neuron_record(path.read_bytes(), name)
                assert (record.neuron_id.layer_index, record.neuron_id.neuron_index) == (
                    int(path.parent.name),
                    int(path.stem),
                )
                again = decode_neuron_record(encode(record), name)
                assert encode(again) == encode(record)
            else:
                results = decode_simulation_results(path.read_bytes(), name)
                assert decode_simulation_results(encode(results), name) is not None
            num_read += 1
        except DataLoss as error:
            refused[error.metadata["file"]] = error.metadata.get("field")
    assert refused == CORRUPT
    assert num_read == len(load(read / "cases.json")["file_descriptions"]) + 4 - len(CORRUPT)


def test_row_lengths_and_coordinates(read: Path) -> None:
    cases = load(read / "attention_utils.json")["lengths"]
    assert len(cases) == 29
    for case in cases:
        num_tokens, num_values = case["num_sequence_tokens"], case["num_activations"]
        cap = token_pairs.attended_cap(num_tokens, num_values)
        assert cap is not None
        assert cap == case["max_attended"]
        lengths = token_pairs.row_lengths(num_tokens, cap)
        # The reference's data leaves the long lists out.
        assert case["row_lengths"] in (None, lengths.tolist())
        assert lengths.sum() == num_values
        for index, pair in case["unflatten"].items():
            assert token_pairs.pair_at(int(index), num_tokens, num_values) == tuple(pair)
        for index, pair in case["unflatten_assuming_square"].items():
            full = num_tokens * (num_tokens + 1) // 2
            assert token_pairs.pair_at(int(index), num_tokens, full) == tuple(pair)


def test_impossible_lengths(read: Path) -> None:
    utils = load(read / "attention_utils.json")
    assert utils.keys() == {"lengths", "invalid", "raw_rows"}
    assert len(utils["invalid"]) == 5
    for case in utils["invalid"]:
        num_tokens, num_values = case["num_sequence_tokens"], case["num_activations"]
        assert token_pairs.attended_cap(num_tokens, num_values) is None


def test_rows_of_files(read: Path) -> None:
    cases = load(read / "attention_utils.json")["raw_rows"]
    assert len(cases) == 4
    for case in cases:
        path = read / case["file"]
        record = decode_neuron_record(path.read_bytes(), case["file"])
        want = [
            [(entry["token"], entry["scalars"]) for entry in sequence]
            for sequence in case["most_positive"]
        ]
        got = [
            [
                (token, row.tolist())
                for token, row in zip(
                    sequence.tokens,
                    token_pairs.to_rows(np.array(sequence.activations), len(sequence.tokens)),
                    strict=True,
                )
            ]
            for sequence in record.most_positive_activation_records
        ]
        assert got == want


def test_splits(golden: Path) -> None:
    cases = [
        case
        for case in load(golden / "simulation/simulation.json.gz")["helpers"]
        if case["fn"] == "split"
    ]
    assert len(cases) == 24
    for case in cases:
        record = NeuronRecord(
            NeuronId(0, 0),
            random_sample=[ActivationRecord([], [f"R{i}"]) for i in range(case["n_random"])],
            most_positive_activation_records=[
                ActivationRecord([], [f"T{i}"]) for i in range(case["n_top"])
            ],
        )
        split = getattr(record, f"{case['split']}_activation_records")
        params = ActivationRecordSliceParams(case["n_examples_per_split"])
        if "error" in case:
            with pytest.raises(InvalidArgument):
                split(params)
        else:
            assert [sequence.tokens[0] for sequence in split(params)] == case["result"]
