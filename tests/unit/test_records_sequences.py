"""Columns of a record against the definitions, one Python number at a time."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.records.components import Component
from services.records.precision import compact
from services.records.sequences import token_pair_sequences, token_sequences
from services.records.stored import Samples
from shared.errors import DataLoss, InvalidArgument
from shared.formats.records import ActivationRecord
from shared.formats.token_pairs import TOKEN_PAIR_TYPES
from shared.normalization import largest_finite, normalized

values = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, math.nan, math.inf, -math.inf])
by_token = st.lists(values, max_size=6).map(
    lambda numbers: ActivationRecord(numbers, [f"t{i}" for i in range(len(numbers))])
)


def num_pairs(num_tokens: int, cap: int) -> int:
    return sum(min(row + 1, cap) for row in range(num_tokens))


by_pair = (
    st.integers(1, 6)
    .flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
    .flatmap(
        lambda size: st.lists(values, min_size=num_pairs(*size), max_size=num_pairs(*size)).map(
            lambda numbers: ActivationRecord(numbers, [f"t{i}" for i in range(size[0])])
        )
    )
)


def scaled(value: float, largest: float) -> float:
    if not math.isfinite(value):
        return math.nan
    if largest <= 1e-5:
        return 0.0
    return min(max(value / (largest - 1e-5), 0.0), 1.0)


def largest_of(numbers: list[float]) -> float:
    return max((number for number in numbers if math.isfinite(number)), default=0.0)


def assert_same(got: np.ndarray, want: list[float]) -> None:
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)


@settings(deadline=None)
@given(st.lists(by_token, max_size=4), st.lists(by_token, max_size=4))
def test_by_token(top: list[ActivationRecord], random: list[ActivationRecord]) -> None:
    columns, maximum = token_sequences(
        [Samples.of(top, "top"), Samples.of(random, "random")], 2, "f"
    )
    assert maximum == largest_of([x for record in top for x in record.activations])
    largest = largest_of([x for record in top + random for x in record.activations])
    for got, records in zip(columns, (top, random), strict=True):
        flat = [x for record in records for x in record.activations]
        assert got.tokens == [token for record in records for token in record.tokens]
        assert got.lengths == [len(record.tokens) for record in records]
        assert_same(got.activations, flat)
        assert_same(got.normalized, [scaled(x, largest) for x in flat])


@settings(deadline=None)
@given(st.lists(by_pair, max_size=4), st.lists(by_pair, max_size=3))
def test_by_token_pair(top: list[ActivationRecord], random: list[ActivationRecord]) -> None:
    groups = [Samples.of(top, "top"), Samples.of(random, "random")]
    columns, maximum = token_pair_sequences(groups, 2, "f")
    assert maximum == largest_of([x for record in top for x in record.activations])
    summaries = [[summarize(record) for record in records] for records in (top, random)]
    for which, name in enumerate(("total_in", "max_in", "total_out", "max_out")):
        series = [[x for each in group for x in each[which]] for group in summaries]
        largest = largest_of([x for group in series for x in group])
        for got, want in zip(columns, series, strict=True):
            np.testing.assert_allclose(getattr(got, name).values, want, rtol=1e-5, atol=0.1)
            scaling = [scaled(x, largest) for x in want]
            if largest > 1.0:
                np.testing.assert_allclose(
                    getattr(got, name).normalized, scaling, rtol=1e-4, atol=1e-4
                )
    largest = largest_of([x for record in top + random for x in record.activations])
    for got, records in zip(columns, (top, random), strict=True):
        flat = [x for record in records for x in record.activations]
        assert_same(got.activations, flat)
        assert_same(got.normalized, [scaled(x, largest) for x in flat])
        assert [num_pairs(*size) for size in zip(got.lengths, got.caps, strict=True)] == [
            len(record.activations) for record in records
        ]


def summarize(record: ActivationRecord) -> tuple[list[float], ...]:
    """Total and max In, total and max Out of each token, by the definition."""
    n = len(record.tokens)
    cap = next(c for c in range(1, n + 1) if num_pairs(n, c) == len(record.activations))
    numbers = iter(record.activations)
    rows: list[list[float]] = [[] for _ in range(n)]
    columns: list[list[float]] = [[] for _ in range(n)]
    for row in range(n):
        for column in range(min(row + 1, cap)):
            value = next(numbers)
            if math.isfinite(value):
                rows[row].append(value)
                columns[column].append(value)
    return (
        [math.fsum(each) for each in rows],
        [max(each, default=0.0) for each in rows],
        [math.fsum(each) for each in columns],
        [max(each, default=0.0) for each in columns],
    )


def test_quantile_samples_are_scaled_by_top_and_random() -> None:
    groups = [
        Samples.of([ActivationRecord([2.0], ["a"])], "top"),
        Samples.of([ActivationRecord([1.0], ["b"])], "random"),
        Samples.of([ActivationRecord([8.0, 0.5], ["c", "d"])], "quantile"),
    ]
    columns, _ = token_sequences(groups, 2, "f")
    assert_same(columns[2].normalized, [1.0, 0.25])


def test_different_lengths_are_data_loss() -> None:
    groups = [
        Samples.of([ActivationRecord([1.0], ["a"])], "most_positive_activation_records"),
        Samples.of([ActivationRecord([1.0], ["b"]), ActivationRecord([1.0, 2.0], ["c"])], "random"),
    ]
    with pytest.raises(DataLoss) as caught:
        token_sequences(groups, 2, "set/0/1.json")
    assert caught.value.metadata == {"file": "set/0/1.json", "field": "random[1]"}
    with pytest.raises(DataLoss) as caught:
        token_pair_sequences(groups, 2, "set/0/1.json")
    assert caught.value.metadata == {"file": "set/0/1.json", "field": "random[1]"}


def test_token_pairs_are_not_read_by_token() -> None:
    groups = [Samples.of([ActivationRecord([1.0, 2.0, 3.0], ["a", "b"])], "top")]
    with pytest.raises(InvalidArgument) as caught:
        token_sequences(groups, 1, "f")
    assert caught.value.field == "component.derived_scalar_type"


def test_empty_records() -> None:
    groups = [Samples.of([], "top"), Samples.of([ActivationRecord([], [])], "random")]
    tokens, maximum = token_sequences(groups, 2, "f")
    assert maximum == 0.0
    assert tokens[1].lengths == [0]
    pairs, maximum = token_pair_sequences(groups, 2, "f")
    assert maximum == 0.0
    assert pairs[1].caps == [0]
    assert pairs[0].total_in.values.size == 0


def test_doubles_stay_doubles_only_where_they_must() -> None:
    assert compact(np.array([1.0, np.inf, np.nan])).dtype == np.float32
    assert compact(np.array([1e39, np.nan])).dtype == np.float64
    huge = token_sequences(
        [Samples.of([ActivationRecord([-1e300, 1e300], ["a", "b"])], "top")], 1, "f"
    )
    assert huge[0][0].activations.tolist() == [-1e300, 1e300]
    assert huge[0][0].normalized.tolist() == [0.0, 1.0]
    assert huge[1] == 1e300


def test_sums_may_overflow() -> None:
    record = ActivationRecord([1e308, 1e308, 1e308], ["a", "b"])
    columns, _ = token_pair_sequences([Samples.of([record], "top")], 1, "f")
    assert columns[0].total_in.values[1] == math.inf
    assert math.isnan(columns[0].total_in.normalized[1])


@pytest.mark.parametrize("maximum", [None, 0.0, 1e-5, -3.0])
def test_nothing_is_normalised_by_nothing(maximum: float | None) -> None:
    got = normalized(np.array([-1.0, 0.0, 5e-6, np.nan]), maximum)
    np.testing.assert_array_equal(got, np.array([0, 0, 0, np.nan], dtype=np.float32))


def test_a_tiny_maximum_does_not_overflow() -> None:
    just_above = math.nextafter(1e-5, 1.0)
    np.testing.assert_array_equal(normalized(np.array([1e300, -1e300]), just_above), [1.0, 0.0])


def test_the_largest_of_nothing() -> None:
    assert largest_finite([]) is None
    assert largest_finite([np.array([]), np.array([np.nan, np.inf])]) is None
    assert largest_finite([np.array([-2.0]), np.array([-1.0, -np.inf])]) == -1.0


def test_token_pair_types_are_those_of_the_contract() -> None:
    proto = Path(__file__).parents[2] / "protos/neuropil/common/v1/derived_scalar_type.proto"
    shapes: dict[str, str] = {}
    for line in proto.read_text().splitlines():
        if match := re.search(r"// Shape (\S+)", line):
            shape = match[1]
        elif match := re.search(r"DERIVED_SCALAR_TYPE_(\w+) = [1-9]", line):
            shapes[match[1].lower()] = shape
    assert len(shapes) == 106
    pairs = {name for name, shape in shapes.items() if shape.startswith(("TxS", "T(T+1)/2"))}
    assert pairs == TOKEN_PAIR_TYPES


@pytest.mark.parametrize("field", ["layer_index", "component_index"])
def test_negative_indices_are_refused(field: str) -> None:
    indices = {"layer_index": 0, "component_index": 0, field: -1}
    with pytest.raises(InvalidArgument, match="count from 0") as caught:
        Component("mlp_post_act", **indices)
    assert caught.value.field == f"component.{field}"
