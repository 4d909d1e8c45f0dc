"""Errors that are both a domain error and what a Python caller of this package expects."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.errors import InvalidArgument


class InvalidInput(InvalidArgument, ValueError):
    """Input that can't be right: INVALID_ARGUMENT on the wire, ValueError in Python."""


class NotCalibrated(InvalidInput):
    """A calibration is applied before it was fitted."""

    default_reason = "NOT_CALIBRATED"


def as_vector(values: ArrayLike, field: str) -> NDArray[np.float64]:
    """`values` as a float64 vector [n], which may be empty and may hold non-finite numbers.

    Raises:
        InvalidInput: naming `field`, if `values` aren't numbers or have another rank than 1.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{field} must be a list of numbers: {error}", field=field) from error
    if vector.ndim != 1:
        raise InvalidInput(
            f"{field} must be one list of numbers, not an array of rank {vector.ndim}", field=field
        )
    return vector


def require_finite(vector: NDArray[np.float64], field: str) -> None:
    """Raise InvalidInput that names `field` and the first position that holds NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        position = int(bad[0])
        raise InvalidInput(
            f"{field}[{position}] is {vector[position]}; finite numbers are needed",
            field=f"{field}[{position}]",
            reason="NON_FINITE_NUMBER",
        )


def require_same_length(first: int, first_field: str, second: int, second_field: str) -> None:
    """Raise InvalidInput that names `second_field` where the two lengths differ."""
    if first != second:
        raise InvalidInput(
            f"{second_field} has {second} values where {first_field} has {first}; "
            "one value a token is needed",
            field=second_field,
            reason="LENGTHS_DIFFER",
        )
