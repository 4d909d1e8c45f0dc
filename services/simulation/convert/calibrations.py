"""Fitted calibrations as messages, and back."""

from __future__ import annotations

from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from services.simulation.calibration.calibrations import (
    Calibration,
    CalibrationKind,
    IsotonicCalibration,
    LinearCalibration,
    NoCalibration,
    PercentileCalibration,
    PiecewiseLinearCalibration,
)
from services.simulation.calibration.fitted import FittedCalibration
from services.simulation.convert.arrays import vector_of
from services.simulation.errors import InvalidInput

_KINDS = {
    v1.CALIBRATION_KIND_NONE: CalibrationKind.NONE,
    v1.CALIBRATION_KIND_LINEAR: CalibrationKind.LINEAR,
    v1.CALIBRATION_KIND_PERCENTILE: CalibrationKind.PERCENTILE,
    v1.CALIBRATION_KIND_ISOTONIC: CalibrationKind.ISOTONIC,
}
_MESSAGE_KINDS = {kind: value for value, kind in _KINDS.items()}


def kind_of(kind: v1.CalibrationKind) -> CalibrationKind | None:
    """The kind that a request means; None where it is unset."""
    return _KINDS.get(kind)


def calibration_of(message: v1.Calibration, field: str) -> FittedCalibration:
    """A stored calibration, with the sequences that it was fitted on as far as they are known.

    Raises:
        InvalidInput: naming the field where it doesn't hold what its kind needs.
    """
    return FittedCalibration(
        _mapping_of(message, field),
        message.fitted_token_count,
        tuple(message.fitted_sequence_hashes),
    )


def _mapping_of(message: v1.Calibration, field: str) -> Calibration:
    kind = kind_of(message.kind)
    if kind is None:
        raise InvalidInput(f"{field}.kind is not set", field=f"{field}.kind")
    held = message.WhichOneof("parameters")
    needed = None if kind is CalibrationKind.NONE else kind.value
    if held != needed:
        raise InvalidInput(
            f"{field} of kind {kind} needs {f'{needed} parameters' if needed else 'no parameters'}"
            f", but has {f'{held} ones' if held else 'none'}",
            field=f"{field}.{needed or held}",
        )
    if kind is CalibrationKind.LINEAR:
        return LinearCalibration(message.linear.slope, message.linear.intercept)
    if kind is CalibrationKind.PERCENTILE:
        return _piecewise(PercentileCalibration, message.percentile, f"{field}.percentile")
    if kind is CalibrationKind.ISOTONIC:
        return _piecewise(IsotonicCalibration, message.isotonic, f"{field}.isotonic")
    return NoCalibration()


def _piecewise(
    of: type[PercentileCalibration] | type[IsotonicCalibration],
    message: v1.PiecewiseLinearCalibration,
    field: str,
) -> Calibration:
    simulated = vector_of(message.simulated, f"{field}.simulated")
    calibrated = vector_of(message.calibrated, f"{field}.calibrated")
    try:
        return of(simulated, calibrated)
    except InvalidInput as error:
        raise InvalidInput(
            f"{field}.{error.message}", field=f"{field}.{error.field}", reason=error.reason
        ) from error


def calibration_message(fitted: FittedCalibration) -> v1.Calibration:
    """A calibration to be stored or sent."""
    calibration = fitted.calibration
    message = v1.Calibration(
        kind=_MESSAGE_KINDS[calibration.kind],
        fitted_token_count=fitted.tokens,
        fitted_sequence_hashes=fitted.sequence_hashes,
    )
    if isinstance(calibration, LinearCalibration):
        message.linear.slope = calibration.slope
        message.linear.intercept = calibration.intercept
    elif isinstance(calibration, PiecewiseLinearCalibration):
        isotonic = isinstance(calibration, IsotonicCalibration)
        knots = message.isotonic if isotonic else message.percentile
        knots.simulated.CopyFrom(to_tensor(calibration.simulated))
        knots.calibrated.CopyFrom(to_tensor(calibration.calibrated))
    return message
