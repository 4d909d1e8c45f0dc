"""Bringing activations to the smallest float type that holds them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FLOAT32_MAX = float(np.finfo(np.float32).max)

FloatArray = NDArray[np.float32] | NDArray[np.float64]


def compact(values: NDArray[np.float64]) -> FloatArray:
    """`values` as float32, or as they are where a finite one would not be finite as float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        smaller = values.astype(np.float32)
        if np.isfinite(smaller).all():
            return smaller
        too_large = np.any(np.abs(values) > _FLOAT32_MAX, where=np.isfinite(values))
        return values if too_large else smaller
