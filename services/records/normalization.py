"""Bringing activations to 0..1, and to the smallest float type that holds them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

MARGIN = 1e-5
"""What is taken off the largest activation before dividing by it."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)

FloatArray = NDArray[np.float32] | NDArray[np.float64]


def largest_finite(arrays: Iterable[NDArray[np.float64]]) -> float | None:
    """The largest finite value of all arrays; None where there is none."""
    largest = (float(np.max(array, where=np.isfinite(array), initial=-np.inf)) for array in arrays)
    maximum = max(largest, default=-np.inf)
    return maximum if np.isfinite(maximum) else None


def normalized(values: NDArray[np.float64], maximum: float | None) -> NDArray[np.float32]:
    """clip(value / (maximum - MARGIN), 0, 1), of the shape of `values`.

    0 everywhere where `maximum` is None or not above MARGIN; NaN where a value is not finite.
    """
    if maximum is None or maximum <= MARGIN:
        result = np.zeros(values.shape, dtype=np.float32)
    else:
        # A huge value over a tiny maximum overflows to infinity, which is clipped to 1.
        with np.errstate(over="ignore", invalid="ignore"):
            result = np.clip(values / (maximum - MARGIN), 0.0, 1.0).astype(np.float32)
    result[~np.isfinite(values)] = np.nan
    return result


def compact(values: NDArray[np.float64]) -> FloatArray:
    """`values` as float32, or as they are where a finite one would not be finite as float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        too_large = np.any(np.abs(values) > _FLOAT32_MAX, where=np.isfinite(values))
        return values if too_large else values.astype(np.float32)
