"""Sums over sequences that scores are computed from, for all sequences in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# A sum of squares outside of this range has lost digits, or all of them.
_SMALLEST, _LARGEST = 1e-280, 1e280


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Of n sequences of true activations t and expected ones p: a sum over its tokens for each."""

    counts: NDArray[np.int64]
    """Tokens."""
    true: FloatArray
    expected: FloatArray
    true_squared: FloatArray
    error_squared: FloatArray
    """(t - p)^2."""
    true_absolute: FloatArray
    error_absolute: FloatArray
    true_deviation: FloatArray
    """(t - mean t)^2."""
    expected_deviation: FloatArray
    codeviation: FloatArray
    """(t - mean t) (p - mean p)."""
    true_lowest: FloatArray
    true_highest: FloatArray
    expected_lowest: FloatArray
    expected_highest: FloatArray

    @classmethod
    def of_sequences(
        cls,
        true: FloatArray,
        expected: FloatArray,
        counts: NDArray[np.int64],
        starts: NDArray[np.int64],
    ) -> Moments:
        """Of sequences that lie one after the other, are finite, and aren't empty.

        Deviations are taken from the means, not from sums of squares, which would cancel.
        """

        def total(values: FloatArray) -> FloatArray:
            return np.add.reduceat(values, starts)

        sums_true, sums_expected = total(true), total(expected)
        error = true - expected
        centred_true = true - np.repeat(sums_true / counts, counts)
        centred_expected = expected - np.repeat(sums_expected / counts, counts)
        return cls(
            counts=counts,
            true=sums_true,
            expected=sums_expected,
            true_squared=total(true * true),
            error_squared=total(error * error),
            true_absolute=total(np.abs(true)),
            error_absolute=total(np.abs(error)),
            true_deviation=total(centred_true * centred_true),
            expected_deviation=total(centred_expected * centred_expected),
            codeviation=total(centred_true * centred_expected),
            true_lowest=np.minimum.reduceat(true, starts),
            true_highest=np.maximum.reduceat(true, starts),
            expected_lowest=np.minimum.reduceat(expected, starts),
            expected_highest=np.maximum.reduceat(expected, starts),
        )

    def concatenated(self) -> Moments:
        """Of all n >= 1 sequences as one: deviations within, and those of the means between."""
        count = self.counts.sum()

        def total(values: FloatArray) -> FloatArray:
            return np.add.reduceat(values, [0])

        between_true = self.true / self.counts - self.true.sum() / count
        between_expected = self.expected / self.counts - self.expected.sum() / count
        return Moments(
            counts=np.asarray([count]),
            true=total(self.true),
            expected=total(self.expected),
            true_squared=total(self.true_squared),
            error_squared=total(self.error_squared),
            true_absolute=total(self.true_absolute),
            error_absolute=total(self.error_absolute),
            true_deviation=total(self.true_deviation + self.counts * between_true**2),
            expected_deviation=total(self.expected_deviation + self.counts * between_expected**2),
            codeviation=total(self.codeviation + self.counts * between_true * between_expected),
            true_lowest=self.true_lowest.min(keepdims=True),
            true_highest=self.true_highest.max(keepdims=True),
            expected_lowest=self.expected_lowest.min(keepdims=True),
            expected_highest=self.expected_highest.max(keepdims=True),
        )

    @property
    def true_constant(self) -> NDArray[np.bool_]:
        """Whether all true activations are the same: a variance of equal ones needn't be 0."""
        return np.equal(self.true_lowest, self.true_highest)

    @property
    def expected_constant(self) -> NDArray[np.bool_]:
        """Whether all expected activations are the same."""
        return np.equal(self.expected_lowest, self.expected_highest)

    @property
    def true_zero(self) -> NDArray[np.bool_]:
        """Whether all true activations are 0."""
        return np.equal(self.true_lowest, 0.0) & np.equal(self.true_highest, 0.0)

    @property
    def lossy(self) -> NDArray[np.bool_]:
        """Whether a sum left the range in which doubles keep their digits."""
        perfect = self.error_absolute == 0
        bad = _out_of_range(
            self.true_squared, np.where(perfect, self.true_squared, self.error_squared)
        )
        bad &= ~self.true_zero
        spread = ~self.true_constant & ~self.expected_constant
        bad |= spread & _out_of_range(self.true_deviation, self.expected_deviation)
        return bad | ~np.isfinite(self.error_absolute) | ~np.isfinite(self.true_absolute)


def _out_of_range(first: FloatArray, second: FloatArray) -> NDArray[np.bool_]:
    low, high = np.minimum(first, second), np.maximum(first, second)
    # NaN fails both comparisons.
    return ~((low >= _SMALLEST) & (high <= _LARGEST))
