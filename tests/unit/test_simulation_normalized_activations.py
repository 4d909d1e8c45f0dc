"""Activations as whole numbers from 0 to 10."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulation.errors import InvalidInput
from services.simulation.normalized_activations import (
    max_activation,
    non_zero_proportion,
    normalize_activations,
    normalize_activations_symmetric,
)

FINITE = st.floats(-1e300, 1e300, allow_nan=False)


@given(st.lists(FINITE, max_size=10), FINITE)
def test_normalized_values_stay_in_range(values: list[float], largest: float) -> None:
    plain = normalize_activations(values, largest)
    symmetric = normalize_activations_symmetric(values, largest)
    assert len(plain) == len(symmetric) == len(values)
    assert all(0 <= v <= 10 for v in plain)
    assert all(-10 <= v <= 10 for v in symmetric)


def test_a_subnormal_maximum_overflows_to_ten() -> None:
    assert normalize_activations([1.0, 0.0, -1.0], 5e-324).tolist() == [10, 0, 0]
    assert normalize_activations_symmetric([1.0, 0.0, -1.0], 5e-324).tolist() == [10, 0, -10]


def test_the_maximum_leaves_out_what_is_not_finite() -> None:
    assert max_activation([[1.0, math.nan], [math.inf, 3.0]]) == 3.0
    assert max_activation([[], [math.nan]]) == -math.inf


@pytest.mark.parametrize(
    ("values", "largest", "field"),
    [
        ([1.0, math.nan], 1.0, "activations[1]"),
        ([math.inf], 1.0, "activations[0]"),
        ([1.0], math.nan, "max_activation[0]"),
        (["x"], 1.0, "activations"),
    ],
)
def test_bad_input_is_named(values: list[float], largest: float, field: str) -> None:
    for function in (normalize_activations, normalize_activations_symmetric):
        with pytest.raises(InvalidInput) as caught:
            function(values, largest)
        assert caught.value.field == field


def test_no_tokens_have_no_share() -> None:
    with pytest.raises(InvalidInput):
        non_zero_proportion([[]], 1.0)
