"""Mean, variance, skewness and kurtosis of a stream, for all components at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Central moments of everything seen, of C components, in float64.

    A batch's own central moments are exact to rounding; they are merged with those of all before
    by the pairwise update of Chan, Golub and LeVeque, extended to the third and fourth moment by
    Pébay (SAND2008-6212), so that a mean far from zero costs no digits. Values that are not finite
    are left out.
    """

    def __init__(self, components: int) -> None:
        self._count = np.zeros(components)
        self._mean = np.zeros(components)
        self._m2 = np.zeros(components)
        self._m3 = np.zeros(components)
        self._m4 = np.zeros(components)

    def update(self, values: NDArray[np.float32]) -> None:
        """Take in values [n, C]."""
        finite = np.isfinite(values)
        x = np.where(finite, values, 0.0).astype(np.float64)
        n_b = finite.sum(axis=0).astype(np.float64)
        mean_b = x.sum(axis=0) / np.maximum(n_b, 1)
        d = np.where(finite, x - mean_b, 0.0)
        square = d * d
        m2_b = square.sum(axis=0)
        m3_b = (square * d).sum(axis=0)
        m4_b = (square * square).sum(axis=0)
        self._merge(n_b, mean_b, m2_b, m3_b, m4_b)

    def _merge(
        self,
        n_b: NDArray[np.float64],
        mean_b: NDArray[np.float64],
        m2_b: NDArray[np.float64],
        m3_b: NDArray[np.float64],
        m4_b: NDArray[np.float64],
    ) -> None:
        n_a, m2_a, m3_a = self._count, self._m2, self._m3
        n = n_a + n_b
        safe = np.maximum(n, 1)
        delta = np.where(n_b > 0, mean_b - self._mean, 0.0)
        shift = delta / safe
        product = n_a * n_b
        self._m4 = (
            self._m4
            + m4_b
            + delta * shift**3 * product * (n_a * n_a - product + n_b * n_b)
            + 6 * shift**2 * (n_a * n_a * m2_b + n_b * n_b * m2_a)
            + 4 * shift * (n_a * m3_b - n_b * m3_a)
        )
        self._m3 = (
            m3_a
            + m3_b
            + delta * shift**2 * product * (n_a - n_b)
            + 3 * shift * (n_a * m2_b - n_b * m2_a)
        )
        self._m2 = m2_a + m2_b + delta * shift * product
        self._mean = self._mean + shift * n_b
        self._count = n

    @property
    def count(self) -> NDArray[np.int64]:
        """Finite values seen, [C]."""
        return self._count.astype(np.int64)

    @property
    def mean(self) -> NDArray[np.float64]:
        """[C]; NaN where nothing was seen."""
        return np.where(self._count > 0, self._mean, np.nan)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Mean squared deviation (of the population), [C]."""
        return self._over_count(self._m2)

    @property
    def skewness(self) -> NDArray[np.float64]:
        """Third standardised moment, [C]; NaN where the variance is 0."""
        return self._standardised(self._m3, 1.5)

    @property
    def kurtosis(self) -> NDArray[np.float64]:
        """Fourth standardised moment (normal: 3), [C]; NaN where the variance is 0."""
        return self._standardised(self._m4, 2.0)

    def _over_count(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(self._count > 0, total / np.maximum(self._count, 1), np.nan)

    def _standardised(self, total: NDArray[np.float64], power: float) -> NDArray[np.float64]:
        variance = self.variance
        varies = variance > 0
        scale = np.where(varies, variance, 1.0) ** power
        return np.where(varies, self._over_count(total) / scale, np.nan)

    def state(self) -> dict[str, NDArray[Any]]:
        """All that `restore` needs."""
        return {
            "count": self._count,
            "mean": self._mean,
            "m2": self._m2,
            "m3": self._m3,
            "m4": self._m4,
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take back a state of the same number of components; ValueError where it differs."""
        for name, value in state.items():
            if value.shape != self._count.shape:
                raise ValueError(f"{name} has shape {value.shape}, not {self._count.shape}")
        self._count, self._mean = state["count"].copy(), state["mean"].copy()
        self._m2, self._m3, self._m4 = (state[name].copy() for name in ("m2", "m3", "m4"))
