"""Scalars of one component by token pair, with summaries of each token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.normalization import largest_finite, normalized

Array = NDArray[np.float32]


@dataclass(frozen=True)
class TokenSummary:
    """One number a token, (T,), and the same normalised by the largest of them."""

    values: Array
    normalized: Array


@dataclass(frozen=True)
class TokenPairScalars:
    """The lower triangle row by row, (T(T+1)/2,), and sums and maxima of rows and columns.

    In is a token's row, as the attending one, Out its column, as the attended-to one. Values that
    are not finite take no part in summaries and normalisation; they are NaN when normalised.
    """

    activations: Array
    normalized: Array
    total_in: TokenSummary
    max_in: TokenSummary
    total_out: TokenSummary
    max_out: TokenSummary


def summarize(scalars: Array) -> TokenPairScalars:
    """Flattens scalars by query and key, (T, T), and sums them up."""
    causal = np.tri(len(scalars), dtype=bool)
    counted = causal & np.isfinite(scalars)
    addends = np.where(counted, scalars, 0).astype(np.float64)
    candidates = np.where(counted, scalars, -np.inf)

    def largest(axis: int) -> Array:
        found = candidates.max(axis=axis)
        return np.where(np.isfinite(found), found, 0).astype(np.float32)

    def summary(values: Array) -> TokenSummary:
        return TokenSummary(values, normalize(values))

    flat = scalars[causal]
    return TokenPairScalars(
        activations=flat,
        normalized=normalize(flat),
        total_in=summary(addends.sum(axis=1).astype(np.float32)),
        max_in=summary(largest(1)),
        total_out=summary(addends.sum(axis=0).astype(np.float32)),
        max_out=summary(largest(0)),
    )


def normalize(values: Array) -> Array:
    """`values` brought to 0..1 by their own largest finite one, as in `shared.normalization`."""
    return normalized(values, largest_finite([values]))
