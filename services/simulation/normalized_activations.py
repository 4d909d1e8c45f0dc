"""Activations on the scale of simulators: whole numbers from 0 to 10, or from -10 to 10."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.simulation.errors import InvalidInput, as_vector, require_finite

MAX_NORMALIZED_ACTIVATION = 10


def max_activation(sequences: Iterable[Sequence[float]]) -> float:
    """Largest finite activation of all sequences; -inf where there is none."""
    finite = (value for sequence in sequences for value in sequence if math.isfinite(value))
    return max(finite, default=-math.inf)


def normalize_activations(activations: ArrayLike, max_activation: float) -> NDArray[np.int64]:
    """min(10, floor(10 * max(0, x) / max_activation)) of each x; all 0 where the maximum is <= 0.

    Raises:
        InvalidInput: an activation or the maximum isn't a finite number.
    """
    values = _checked(activations, max_activation)
    if max_activation <= 0:
        return np.zeros(len(values), dtype=np.int64)
    with np.errstate(over="ignore"):
        scaled = MAX_NORMALIZED_ACTIVATION * np.maximum(values, 0.0) / max_activation
    return np.minimum(MAX_NORMALIZED_ACTIVATION, np.floor(scaled)).astype(np.int64)


def normalize_activations_symmetric(
    activations: ArrayLike, max_activation: float
) -> NDArray[np.int64]:
    """trunc(10 * x / max_activation) of each x, clamped to -10 .. 10; all 0 where it is 0.

    Raises:
        InvalidInput: an activation or the maximum isn't a finite number.
    """
    values = _checked(activations, max_activation)
    if max_activation == 0:
        return np.zeros(len(values), dtype=np.int64)
    with np.errstate(over="ignore"):
        scaled = MAX_NORMALIZED_ACTIVATION * values / max_activation
    limit = MAX_NORMALIZED_ACTIVATION
    return np.trunc(np.clip(scaled, -limit, limit)).astype(np.int64)


def non_zero_proportion(sequences: Iterable[Sequence[float]], max_activation: float) -> float:
    """Share of all tokens whose normalised activation isn't 0.

    Raises:
        InvalidInput: there are no tokens, or a number isn't finite.
    """
    flat = np.concatenate([np.zeros(0), *(as_vector(s, "activations") for s in sequences)])
    if not len(flat):
        raise InvalidInput("no tokens, so no share of them", field="activations")
    return float(np.mean(normalize_activations(flat, max_activation) != 0))


def _checked(activations: ArrayLike, max_activation: float) -> NDArray[np.float64]:
    values = as_vector(activations, "activations")
    require_finite(values, "activations")
    require_finite(as_vector([max_activation], "max_activation"), "max_activation")
    return values
