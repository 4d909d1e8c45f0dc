"""Activations brought to 0..1, the one way in which every answer does it.

normalised = clip(x / (M - MARGIN), 0, 1), where M is the largest finite activation in question.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARGIN = 1e-5
"""What is taken off the largest activation before dividing by it, in activation units."""


def largest_finite(arrays: Iterable[NDArray[Any]]) -> float | None:
    """The largest finite value of all arrays, of any shapes; None where there is none."""
    maximum = max(map(_largest, arrays), default=-np.inf)
    return maximum if np.isfinite(maximum) else None


def normalized(values: NDArray[Any], maximum: float | None) -> NDArray[np.float32]:
    """clip(value / (maximum - MARGIN), 0, 1) in double precision, of the shape of `values`.

    `values` has at least one dimension. 0 everywhere where `maximum` is None, not finite or not
    above MARGIN; NaN where a value is not finite.
    """
    if maximum is None or not np.isfinite(maximum) or maximum <= MARGIN:
        result = np.zeros(values.shape, dtype=np.float32)
    else:
        # A huge value over a tiny maximum overflows to infinity, which is clipped to 1.
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.divide(values, maximum - MARGIN, dtype=np.float64)
            result = np.clip(scaled, 0.0, 1.0, out=scaled).astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        result[~finite] = np.nan
    return result


def _largest(array: NDArray[Any]) -> float:
    """The largest finite value, -inf where there is none."""
    if not array.size:
        return -np.inf
    largest = float(np.max(array))
    # Mostly all values are finite, and then to look at each of them would only take time.
    if np.isfinite(largest):
        return largest
    return float(np.max(array, where=np.isfinite(array), initial=-np.inf))
