"""Fitted calibrations as messages, and back."""

from __future__ import annotations

from neuropil.simulation import v1
from neuropil.tensors import to_tensor
from services.simulation.calibration.calibrations import (
    Calibration,
    CalibrationKind,
    LinearCalibration,
    NoCalibration,
    PercentileCalibration,
)
from services.simulation.convert.arrays import vector_of
from services.simulation.errors import InvalidInput
from shared.errors import Unimplemented

_KINDS = {
    v1.CALIBRATION_KIND_NONE: CalibrationKind.NONE,
    v1.CALIBRATION_KIND_LINEAR: CalibrationKind.LINEAR,
    v1.CALIBRATION_KIND_PERCENTILE: CalibrationKind.PERCENTILE,
}


def kind_of(kind: int, default: CalibrationKind, field: str) -> CalibrationKind:
    """The kind that a request means; unset is `default`.

    Raises:
        Unimplemented: a kind of a later release.
    """
    if kind == v1.CALIBRATION_KIND_UNSPECIFIED:
        return default
    known = _KINDS.get(kind)  # type: ignore[call-overload]
    if known is None:
        raise Unimplemented(
            f"{field}: isotonic calibration is not served by this release", field=field
        )
    return CalibrationKind(known)


def calibration_of(message: v1.Calibration, field: str) -> Calibration:
    """A stored calibration.

    Raises:
        InvalidInput: naming the field where it doesn't hold what its kind needs.
        Unimplemented: a kind of a later release.
    """
    if message.kind == v1.CALIBRATION_KIND_UNSPECIFIED:
        raise InvalidInput(f"{field}.kind is not set", field=f"{field}.kind")
    kind = kind_of(message.kind, CalibrationKind.NONE, f"{field}.kind")
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
        name = f"{field}.percentile"
        simulated = vector_of(message.percentile.simulated, f"{name}.simulated")
        calibrated = vector_of(message.percentile.calibrated, f"{name}.calibrated")
        try:
            return PercentileCalibration(simulated, calibrated)
        except InvalidInput as error:
            raise InvalidInput(
                f"{name}.{error.message}", field=f"{name}.{error.field}", reason=error.reason
            ) from error
    return NoCalibration()


def calibration_message(calibration: Calibration, fitted_tokens: int) -> v1.Calibration:
    """A calibration to be stored or sent."""
    message = v1.Calibration(
        kind=next(key for key, kind in _KINDS.items() if kind is calibration.kind),
        fitted_token_count=fitted_tokens,
    )
    if isinstance(calibration, LinearCalibration):
        message.linear.slope = calibration.slope
        message.linear.intercept = calibration.intercept
    elif isinstance(calibration, PercentileCalibration):
        message.percentile.simulated.CopyFrom(to_tensor(calibration.simulated))
        message.percentile.calibrated.CopyFrom(to_tensor(calibration.calibrated))
    return message
