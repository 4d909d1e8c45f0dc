"""Fitted calibrations by the content of what they were fitted on: none is paid for twice."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from services.simulation.calibration.calibrations import (
    CalibrationKind,
    PiecewiseLinearCalibration,
)
from services.simulation.calibration.fitted import FittedCalibration, sequence_hash
from services.simulation.scoring.labeled_sequences import LabeledSequences
from services.simulation.simulators.interface import Simulator, ValidityReport

CACHE_BYTES = 32 << 20
_ENTRY_BYTES = 1024


@dataclass(frozen=True)
class CachedFit:
    """A fitted calibration, and how much of its sequences got a distribution."""

    fitted: FittedCalibration
    report: ValidityReport

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        knots = 0
        if isinstance(self.fitted.calibration, PiecewiseLinearCalibration):
            knots = 2 * len(self.fitted.calibration.simulated)
        return _ENTRY_BYTES + 8 * knots + 40 * len(self.fitted.sequence_hashes)


class CalibrationCache:
    """The calibrations used last, as many as its bytes hold; for one event loop."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._fits: OrderedDict[str, CachedFit] = OrderedDict()

    def __len__(self) -> int:
        return len(self._fits)

    def get(self, key: str) -> CachedFit | None:
        """What was kept under a key; None where nothing is."""
        fit = self._fits.get(key)
        if fit is not None:
            self._fits.move_to_end(key)
        return fit

    def put(self, key: str, fit: CachedFit) -> None:
        """Keep a fit, in place of those not used for longest."""
        previous = self._fits.pop(key, None)
        if previous is not None:
            self._held -= previous.size
        if fit.size > self._max_bytes:
            return
        self._fits[key] = fit
        self._held += fit.size
        while self._held > self._max_bytes:
            _, dropped = self._fits.popitem(last=False)
            self._held -= dropped.size


def content_key(
    simulator: Simulator,
    explanation: str,
    sequences: LabeledSequences,
    kind: CalibrationKind,
) -> str:
    """The same for fits that can't differ: same simulator, version, explanation and sequences."""
    digest = hashlib.blake2b(digest_size=20)
    for text in (
        kind.value,
        simulator.kind,
        simulator.name,
        simulator.model,
        simulator.prompt_version,
        # Such as how a server is asked: the same model can be asked in other ways.
        *simulator.capabilities,
        explanation,
    ):
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(encoded))
        digest.update(encoded)
    for tokens, activations in zip(sequences.tokens, sequences.activations, strict=True):
        digest.update(b"%d:%d:" % (sequence_hash(tokens), len(tokens)))
        digest.update(np.ascontiguousarray(activations, dtype="<f8").tobytes())
    return digest.hexdigest()
