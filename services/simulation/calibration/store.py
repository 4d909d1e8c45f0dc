"""Fitted calibrations kept under a name made from their content, for any process to apply."""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Protocol

import msgspec
import numpy as np

from services.simulation.calibration.calibrations import (
    Calibration,
    CalibrationKind,
    IsotonicCalibration,
    LinearCalibration,
    NoCalibration,
    PercentileCalibration,
    PiecewiseLinearCalibration,
)
from services.simulation.calibration.content import CachedFit, CalibrationCache
from services.simulation.calibration.fitted import FittedCalibration
from services.simulation.errors import InvalidInput
from services.simulation.simulators.interface import ValidityReport
from shared.errors import DataLoss, NotFound

_FOLDER = "calibrations"
_ID = re.compile(r"cal-[0-9a-f]{40}")


class State(Protocol):
    """What of the service's state store is needed."""

    async def get(self, name: str) -> bytes | None: ...

    async def put(self, name: str, data: bytes) -> None: ...


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    """The file of a calibration; the order of its fields is part of its name."""

    version: int
    kind: str
    slope: float | None
    intercept: float | None
    simulated: list[float] | None
    calibrated: list[float] | None
    fitted_tokens: int
    fitted_sequence_hashes: list[int]


class CalibrationStore:
    """Puts calibrations into the state store and gets them back, the same to the last bit."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._remembered = CalibrationCache()

    async def put(self, fitted: FittedCalibration) -> str:
        """Keep a calibration; its id, the same for the same content."""
        # Of a million knots this takes a while, in which others should be answered.
        data, calibration_id = await asyncio.to_thread(_encoded, fitted)
        await self._state.put(f"{_FOLDER}/{calibration_id}", data)
        return calibration_id

    async def get(self, calibration_id: str, field: str = "calibration_id") -> FittedCalibration:
        """A calibration that was kept, here or by another process.

        Raises:
            InvalidInput: naming `field`, where `calibration_id` is no id.
            NotFound: nothing is kept under it.
            DataLoss: what is kept is not what was put there.
        """
        if not _ID.fullmatch(calibration_id):
            raise InvalidInput(
                f"{field} is {calibration_id[:60]!r}; an id is cal- and 40 hexadecimal digits",
                field=field,
            )
        known = self._remembered.get(calibration_id)
        if known is not None:
            return known.fitted
        data = await self._state.get(f"{_FOLDER}/{calibration_id}")
        if data is None:
            raise NotFound(
                f"no calibration {calibration_id} is kept here",
                field=field,
                reason="CALIBRATION_NOT_FOUND",
            )
        fitted = await asyncio.to_thread(_checked, data, calibration_id)
        self._remembered.put(calibration_id, CachedFit(fitted, ValidityReport()))
        return fitted


def id_of(data: bytes) -> str:
    """The id of an encoded calibration."""
    return f"cal-{hashlib.blake2b(data, digest_size=20).hexdigest()}"


def _encoded(fitted: FittedCalibration) -> tuple[bytes, str]:
    data = encode(fitted)
    return data, id_of(data)


def _checked(data: bytes, calibration_id: str) -> FittedCalibration:
    if id_of(data) != calibration_id:
        raise _damaged(calibration_id, "its content doesn't match its id")
    return decode(data, calibration_id)


def encode(fitted: FittedCalibration) -> bytes:
    """JSON; doubles are written so that they are read back as they were."""
    calibration = fitted.calibration
    line = calibration if isinstance(calibration, LinearCalibration) else None
    knots = calibration if isinstance(calibration, PiecewiseLinearCalibration) else None
    return msgspec.json.encode(
        _Stored(
            version=1,
            kind=calibration.kind.value,
            slope=line.slope if line else None,
            intercept=line.intercept if line else None,
            simulated=knots.simulated.tolist() if knots else None,
            calibrated=knots.calibrated.tolist() if knots else None,
            fitted_tokens=fitted.tokens,
            fitted_sequence_hashes=sorted(set(fitted.sequence_hashes)),
        )
    )


def decode(data: bytes, name: str) -> FittedCalibration:
    """What `encode` wrote; DataLoss, with `name`, where it isn't that."""
    try:
        stored = msgspec.json.decode(data, type=_Stored)
        if stored.version != 1:
            raise _damaged(name, f"version {stored.version} is not known here")
        calibration = _calibration(stored)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise _damaged(name, str(error)) from error
    return FittedCalibration(
        calibration, stored.fitted_tokens, tuple(stored.fitted_sequence_hashes)
    )


def _calibration(stored: _Stored) -> Calibration:
    kind = CalibrationKind(stored.kind)
    if kind is CalibrationKind.NONE:
        return NoCalibration()
    if kind is CalibrationKind.LINEAR:
        if stored.slope is None or stored.intercept is None:
            raise ValueError("a line needs slope and intercept")
        return LinearCalibration(stored.slope, stored.intercept)
    if stored.simulated is None or stored.calibrated is None:
        raise ValueError("knots are missing")
    piecewise = PercentileCalibration if kind is CalibrationKind.PERCENTILE else IsotonicCalibration
    return piecewise(np.asarray(stored.simulated), np.asarray(stored.calibrated))


def _damaged(name: str, why: str) -> DataLoss:
    return DataLoss(
        f"the stored calibration {name} can't be read: {why}",
        reason="CALIBRATION_DAMAGED",
        metadata={"calibration_id": name},
    )
