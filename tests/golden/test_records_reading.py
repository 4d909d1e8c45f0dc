"""Records as columns against the reference's answers, rendered back to its JSON."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.records.components import Component, View
from services.records.loading import token_pair_record, token_record
from services.records.sequences import Summary, TokenPairSequences, TokenSequences
from shared.errors import DataLoss, InvalidArgument

pytestmark = pytest.mark.golden

FOLDERS = {"oracle-pub": "mlp", "oracle-pub-fb": "mlp_fallback"}


@pytest.fixture
def read(golden: Path) -> Path:
    return golden / "read"


def cases(read: Path, route: str) -> list[dict[str, Any]]:
    """The reference's pairs on `route` that name a component of a dataset that it has."""
    document = json.loads((read / "cases.json").read_text())["cases"]
    return [
        case
        for case in document
        if case["route"] == route
        and case["method"] == "POST"
        and case["status"] in (200, 500)
        and "raw_body" not in case
        and case["request"]["datasets"]
        and case["request"]["datasets"][0] in FOLDERS
    ]


def answer(read: Path, case: dict[str, Any]) -> Any:
    if "response_file" in case:
        return json.loads(gzip.decompress((read / case["response_file"]).read_bytes()))
    return case["response"]


def content(
    read: Path, case: dict[str, Any], folder: str | None = None
) -> tuple[bytes, Component, str]:
    request = case["request"]
    component = Component(
        request["dst"],
        int(request.get("layerIndex", request.get("layer_index"))),
        int(request.get("activationIndex", request.get("activation_index"))),
    )
    for name in [folder] if folder else [FOLDERS[name] for name in request["datasets"]]:
        path = read / name / component.record_file
        if path.exists():
            return path.read_bytes(), component, f"{{ROOT}}/{name}"
    raise AssertionError(f"{component} is nowhere")


def is_close(got: float, want: float) -> bool:
    return math.isclose(got, want, rel_tol=1e-4, abs_tol=2e-5)


def is_close_normalized(got: float, want: float) -> bool:
    if want > 1.001:  # where all are negative, the reference divides by -1e-5
        return got == 0.0
    return math.isclose(got, min(want, 1.0), rel_tol=5e-4, abs_tol=5e-5)


def assert_tokens(got: TokenSequences, want: list[list[dict[str, Any]]]) -> None:
    assert got.lengths == [len(sequence) for sequence in want]
    flat = [entry for sequence in want for entry in sequence]
    assert got.tokens == [entry["token"] for entry in flat]
    assert len(flat) == got.activations.size == got.normalized.size
    for entry, scalar, normalized in zip(flat, got.activations, got.normalized, strict=True):
        assert is_close(float(scalar), entry["scalar"])
        assert is_close_normalized(float(normalized), entry["normalizedScalar"])


def assert_pairs(got: TokenPairSequences, want: list[list[dict[str, Any]]]) -> None:
    assert got.lengths == [len(sequence) for sequence in want]
    assert got.caps == got.lengths
    flat = [entry for sequence in want for entry in sequence]
    assert got.tokens == [entry["token"] for entry in flat]
    series = {
        "scalars": (got.activations, is_close),
        "normalizedScalars": (got.normalized, is_close_normalized),
    }
    for name, (array, close) in series.items():
        expected = [value for entry in flat for value in entry[name]]
        assert array.size == len(expected)
        assert all(close(float(a), b) for a, b in zip(array, expected, strict=True)), name
    summaries: dict[str, Summary] = {
        "otalScalarIn": got.total_in,
        "axScalarIn": got.max_in,
        "otalScalarOut": got.total_out,
        "axScalarOut": got.max_out,
    }
    for name, summary in summaries.items():
        first = "t" if name.startswith("o") else "m"
        for entry, value, normalized in zip(flat, summary.values, summary.normalized, strict=True):
            assert is_close(float(value), entry[first + name])
            assert is_close_normalized(
                float(normalized), entry["normalized" + first.upper() + name]
            )


def test_records_by_token(read: Path) -> None:
    agreed = 0
    for case in cases(read, "/neuron_record"):
        if case["status"] != 200 or case["name"] in {
            "neuron_record_18",
            "neuron_record_on_attn_file",
        }:
            continue
        data, component, dataset = content(read, case)
        got = token_record(data, dataset, component, View(), "file")
        want = answer(read, case)
        assert got.dataset == want["dataset"], case["name"]
        assert is_close(got.max_activation, want["maxActivation"])
        assert_tokens(got.top, want["topActivations"])
        assert_tokens(got.random, want["randomSample"])
        agreed += 1
    assert agreed == 23


def test_records_by_token_pair(read: Path) -> None:
    agreed = 0
    for case in cases(read, "/attention_head_record"):
        if case["status"] != 200:
            continue
        data, component, dataset = content(read, case, "attn")
        got = token_pair_record(data, dataset, component, View(), "file")
        want = answer(read, case)
        assert is_close(got.max_activation, want["maxAttentionActivation"])
        assert_pairs(got.top, want["mostPositiveTokenSequences"])
        assert_pairs(got.random, want["randomTokenSequences"])
        agreed += 1
    assert agreed == 6


# Files that the reference answers with 500, or wrongly with 200: the field that is named, or None
# where the file is served.
BY_TOKEN = {
    5: None,
    6: None,
    7: None,
    13: None,
    15: None,
    16: None,
    17: "",
    18: "most_positive_activation_records[0]",
    20: None,
    22: "neuron_id",
    24: None,
    26: "neuron_id",
    27: None,
}
BY_TOKEN_PAIR = {
    2: None,
    3: None,
    6: "random_sample[0]",
    7: "random_sample[0]",
    8: None,
    10: None,
    11: None,
    12: None,
}


@pytest.mark.parametrize(("index", "field"), BY_TOKEN.items())
def test_odd_files_by_token(read: Path, index: int, field: str | None) -> None:
    component = Component("mlp_post_act", 0, index)
    data = (read / "mlp" / component.record_file).read_bytes()
    if field is not None:
        with pytest.raises(DataLoss) as caught:
            token_record(data, "mlp", component, View(), "mlp/file")
        assert caught.value.metadata.get("field", "") == field
        assert caught.value.metadata["file"] == "mlp/file"
        return
    got = token_record(data, "mlp", component, View(), "mlp/file")
    assert math.isfinite(got.max_activation)
    for sequences in (got.top, got.random):
        finite = np.isfinite(sequences.activations)
        assert np.array_equal(np.isfinite(sequences.normalized), finite)
        assert np.all((sequences.normalized[finite] >= 0) & (sequences.normalized[finite] <= 1))
    missing = int(
        np.sum(~np.isfinite(np.concatenate([got.top.activations, got.random.activations])))
    )
    assert missing == (1 if index in (5, 6, 7) else 0)


@pytest.mark.parametrize(("index", "field"), BY_TOKEN_PAIR.items())
def test_odd_files_by_token_pair(read: Path, index: int, field: str | None) -> None:
    component = Component("attn_write_norm", 0, index)
    data = (read / "attn" / component.record_file).read_bytes()
    if field is not None:
        with pytest.raises(DataLoss) as caught:
            token_pair_record(data, "attn", component, View(), "attn/file")
        assert caught.value.metadata == {"file": "attn/file", "field": field}
        return
    got = token_pair_record(data, "attn", component, View(), "attn/file")
    for sequences in (got.top, got.random):
        pairs = [
            sum(min(row + 1, cap) for row in range(length))
            for length, cap in zip(sequences.lengths, sequences.caps, strict=True)
        ]
        assert sequences.activations.size == sum(pairs)
        for summary in (
            sequences.total_in,
            sequences.max_in,
            sequences.total_out,
            sequences.max_out,
        ):
            assert summary.values.size == summary.normalized.size == sum(sequences.lengths)
            assert np.all(np.isfinite(summary.values))
            assert np.all((summary.normalized >= 0) & (summary.normalized <= 1))


def test_an_attention_file_is_not_read_by_token(read: Path) -> None:
    component = Component("mlp_post_act", 0, 1)
    data = (read / "attn" / component.record_file).read_bytes()
    with pytest.raises(InvalidArgument, match="token pair"):
        token_record(data, "attn", component, View(), "attn/file")


def test_quantiles_and_moments(read: Path) -> None:
    component = Component("mlp_post_act", 0, 2)
    data = (read / "mlp" / component.record_file).read_bytes()
    stored = json.loads(data)
    got = token_record(data, "mlp", component, View(True, True), "mlp/file")
    assert [sequences.tokens for sequences in got.quantiles] == [
        [token for record in records for token in record["tokens"]]
        for records in stored["random_sample_by_quantile"]
    ]
    assert got.quantile_boundaries == stored["quantile_boundaries"]
    assert got.moments is not None
    assert got.moments.mean == stored["mean"]
    assert got.moments.kurtosis == stored["kurtosis"]
    plain = token_record(data, "mlp", component, View(), "mlp/file")
    assert plain.quantiles == []
    assert plain.quantile_boundaries == []
    assert plain.moments is None
    assert np.array_equal(plain.top.normalized, got.top.normalized)
