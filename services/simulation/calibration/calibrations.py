"""Calibration: from the simulator's scale, 0 to 10, to a component's real activations.

A fitted calibration is data: immutable, comparable, storable, and applied anywhere with the same
result. There are four kinds:

- none: the identity
- linear: ordinary least squares, true = slope * simulated + intercept (scikit-learn); a constant
  simulation gives slope 0 and the mean
- percentile: linear interpolation from the sorted simulated to the sorted true activations of the
  calibration sequences (`numpy.interp`), clamped outside; where simulated values tie, the largest
  true value of the tie is taken
- isotonic: the ascending function with the least squared error (scikit-learn), linear between its
  knots, clamped outside; it can't turn a simulation round that predicts the opposite
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression

from services.simulation.errors import (
    InvalidInput,
    as_vector,
    require_finite,
    require_same_length,
)

FloatArray = NDArray[np.float64]

_WORTH_SORTING = 1000
"""Values, and knots, from which interpolating in order is faster."""


class CalibrationKind(StrEnum):
    """How simulated activations are mapped to real ones; the names of the configuration."""

    NONE = "none"
    LINEAR = "linear"
    PERCENTILE = "percentile"
    ISOTONIC = "isotonic"


class Calibration(Protocol):
    """A fitted calibration."""

    @property
    def kind(self) -> CalibrationKind:
        """Which of the four kinds it is."""
        ...

    def apply(self, values: ArrayLike) -> FloatArray:
        """Map simulated activations [n] to the component's units [n]; empty in, empty out.

        NaN stays NaN (a token without a distribution has no activation), infinity is refused.

        Raises:
            InvalidInput: something is infinite or isn't a number, or the result is too large for
                a double.
        """
        ...


@dataclass(frozen=True)
class NoCalibration:
    """The identity."""

    @property
    def kind(self) -> CalibrationKind:
        return CalibrationKind.NONE

    def apply(self, values: ArrayLike) -> FloatArray:
        return _operand(values).copy()


@dataclass(frozen=True)
class LinearCalibration:
    """slope * value + intercept, in the component's units."""

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        require_finite(as_vector([self.slope], "slope"), "slope")
        require_finite(as_vector([self.intercept], "intercept"), "intercept")

    @property
    def kind(self) -> CalibrationKind:
        return CalibrationKind.LINEAR

    def apply(self, values: ArrayLike) -> FloatArray:
        operand = _operand(values)
        with np.errstate(over="ignore"):
            result = operand * self.slope + self.intercept
        return _in_range(result, operand)


@dataclass(frozen=True, eq=False)
class PiecewiseLinearCalibration:
    """Interpolation through points (`simulated` [n], `calibrated` [n]), ascending, n >= 1."""

    simulated: FloatArray
    calibrated: FloatArray

    def __post_init__(self) -> None:
        for field in ("simulated", "calibrated"):
            points = as_vector(getattr(self, field), field).copy()
            require_finite(points, field)
            if not len(points):
                raise InvalidInput(f"{field} has no points; one is needed", field=field)
            if (points[1:] < points[:-1]).any():
                raise InvalidInput(f"{field} must be in ascending order", field=field)
            points.flags.writeable = False
            object.__setattr__(self, field, points)
        require_same_length(len(self.simulated), "simulated", len(self.calibrated), "calibrated")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PiecewiseLinearCalibration)
            and type(other) is type(self)
            and np.array_equal(self.simulated, other.simulated)
            and np.array_equal(self.calibrated, other.calibrated)
        )

    def __hash__(self) -> int:
        return hash((self.simulated.tobytes(), self.calibrated.tobytes()))

    def apply(self, values: ArrayLike) -> FloatArray:
        operand = _operand(values)
        with np.errstate(over="ignore", invalid="ignore"):
            result = self._interpolated(operand)
        # One point alone would answer NaN with its own value.
        result[np.isnan(operand)] = np.nan
        return _in_range(result, operand)

    def _interpolated(self, operand: FloatArray) -> FloatArray:
        if min(len(operand), len(self.simulated)) < _WORTH_SORTING:
            return np.interp(operand, self.simulated, self.calibrated)
        # In ascending order the knots are met one after the other: twice as fast, sorting included.
        order = np.argsort(operand)
        result = np.empty_like(operand)
        result[order] = np.interp(operand[order], self.simulated, self.calibrated)
        return result


class PercentileCalibration(PiecewiseLinearCalibration):
    """Through the percentiles of simulated and true activations."""

    @property
    def kind(self) -> CalibrationKind:
        return CalibrationKind.PERCENTILE


class IsotonicCalibration(PiecewiseLinearCalibration):
    """Through the knots of the best ascending function."""

    @property
    def kind(self) -> CalibrationKind:
        return CalibrationKind.ISOTONIC


class SimulatedActivations(Protocol):
    """What a calibration is fitted from: a simulation of one sequence."""

    @property
    def expected_activations(self) -> Sequence[float] | FloatArray: ...


class TrueActivations(Protocol):
    """What a calibration is fitted to: a recorded sequence."""

    @property
    def activations(self) -> Sequence[float] | FloatArray: ...


def fit_calibration(
    kind: CalibrationKind, simulated: ArrayLike, true_activations: ArrayLike
) -> Calibration:
    """Fit to the calibration sequences, concatenated: two vectors [tokens].

    Raises:
        InvalidInput: the lengths differ, there are no tokens (but for kind none, which needs
            none), or something isn't a finite number.
    """
    if kind is CalibrationKind.NONE:
        return NoCalibration()
    values = as_vector(simulated, "simulated")
    true = as_vector(true_activations, "true_activations")
    require_same_length(len(values), "simulated", len(true), "true_activations")
    if not len(true):
        raise InvalidInput(
            f"true_activations has no tokens to fit a {kind} calibration to",
            field="true_activations",
            reason="NO_CALIBRATION_TOKENS",
        )
    require_finite(values, "simulated")
    require_finite(true, "true_activations")
    if kind is CalibrationKind.LINEAR:
        return _fit_linear(values, true)
    if kind is CalibrationKind.ISOTONIC:
        return _fit_isotonic(values, true)
    return _fit_percentile(values, true)


def _fit_linear(simulated: FloatArray, true: FloatArray) -> LinearCalibration:
    if simulated.min() == simulated.max():
        # Asked plainly: equal values needn't equal their rounded mean, and would get a slope.
        return LinearCalibration(0.0, float(np.clip(np.mean(true), true.min(), true.max())))
    # Least squares squares its input: bring both sides near 1 where squares would leave the range.
    scale_s, scale_t = _scale(simulated), _scale(true)
    regression = LinearRegression()
    with np.errstate(over="ignore", invalid="ignore"):
        regression.fit((simulated / scale_s).reshape(-1, 1), true / scale_t)
        slope = float(regression.coef_[0]) / scale_s * scale_t
        intercept = float(regression.intercept_) * scale_t
    if not np.isfinite([slope, intercept]).all():
        raise InvalidInput(
            "a line through these activations has a slope that no double can hold",
            field="simulated",
            reason="OUT_OF_RANGE",
        )
    return LinearCalibration(slope, intercept)


def _scale(values: FloatArray) -> float:
    largest = float(np.max(np.abs(values)))
    return 1.0 if largest == 0 or 1e-100 < largest < 1e100 else largest


def _fit_percentile(simulated: FloatArray, true: FloatArray) -> PercentileCalibration:
    points, targets = np.sort(simulated), np.sort(true)
    # Interpolation reads only the first and the last point of a tie, so the others can go.
    same_before = np.concatenate(([False], points[1:] == points[:-1]))
    same_after = np.concatenate((points[:-1] == points[1:], [False]))
    kept = ~(same_before & same_after)
    return PercentileCalibration(points[kept], targets[kept])


def _fit_isotonic(simulated: FloatArray, true: FloatArray) -> IsotonicCalibration:
    regression = IsotonicRegression(out_of_bounds="clip")
    # Near 1, so that no sum of a block leaves the range of a double.
    scale_s, scale_t = _scale(simulated), _scale(true)
    regression.fit(simulated / scale_s, true / scale_t)
    knots = np.asarray(regression.X_thresholds_, dtype=np.float64) * scale_s
    values = np.asarray(regression.y_thresholds_, dtype=np.float64) * scale_t
    # Scaling back can round a mean over the largest value.
    return IsotonicCalibration(knots, np.clip(values, true.min(), true.max()))


def _in_range(result: FloatArray, operand: FloatArray) -> FloatArray:
    lost = ~np.isfinite(result) & ~np.isnan(operand)
    if lost.any():
        position = int(np.flatnonzero(lost)[0])
        raise InvalidInput(
            f"values[{position}] is {operand[position]:g}: what this calibration maps it to is too "
            "large for a double",
            field=f"values[{position}]",
            reason="OUT_OF_RANGE",
        )
    return result


def _operand(values: ArrayLike) -> FloatArray:
    operand = as_vector(values, "values")
    infinite = np.isinf(operand)
    if infinite.any():
        position = int(np.flatnonzero(infinite)[0])
        raise InvalidInput(
            f"values[{position}] is {operand[position]}; finite numbers are needed",
            field=f"values[{position}]",
            reason="NON_FINITE_NUMBER",
        )
    return operand
