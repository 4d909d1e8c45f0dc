"""The rule that brings activations to 0..1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.normalization import MARGIN, largest_finite, normalized

anything = st.floats(width=64) | st.sampled_from([0.0, -0.0, 1e-5, 2e-5, 1e308, -1e308, 5e-324])


@given(st.lists(anything, max_size=8), anything | st.none())
def test_every_value_by_the_definition(values: list[float], maximum: float | None) -> None:
    got = normalized(np.array(values, dtype=np.float64), maximum)
    assert got.dtype == np.float32
    for value, result in zip(values, got.tolist(), strict=True):
        if not math.isfinite(value):
            assert math.isnan(result)
        elif maximum is None or not math.isfinite(maximum) or maximum <= MARGIN:
            assert result == 0.0
        else:
            assert result == pytest.approx(min(max(value / (maximum - MARGIN), 0), 1), abs=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_narrow_types_are_divided_in_double_precision(dtype: type) -> None:
    values: NDArray[Any] = np.array([[0, 1], [3, 4]], dtype=dtype)
    wide = values.astype(np.float64)
    got = normalized(values, 4.0)
    assert got.shape == (2, 2)
    np.testing.assert_array_equal(got, np.minimum(wide / (4.0 - 1e-5), 1).astype(np.float32))


def test_at_the_margin_itself_nothing_is_divided_by_zero() -> None:
    np.testing.assert_array_equal(normalized(np.array([1e-5, -1.0]), 1e-5), [0.0, 0.0])
    assert normalized(np.array([1.0]), math.nextafter(1e-5, 1)).tolist() == [1.0]


def test_the_largest_is_over_all_arrays_and_only_finite() -> None:
    arrays = [np.array([1.0, math.inf]), np.array([]), np.array([[math.nan, 3.0]])]
    assert largest_finite(arrays) == 3.0
    assert largest_finite([np.array([-2.0, -math.inf])]) == -2.0
    assert largest_finite([np.array([math.nan])]) is None
    assert largest_finite([]) is None
