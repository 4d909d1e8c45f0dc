"""The simulators that Python users know by name: calibrated ones around any other."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Protocol, Self

import numpy as np

from services.simulation.calibration.calibrations import (
    Calibration,
    CalibrationKind,
    SimulatedActivations,
    TrueActivations,
    fit_calibration,
)
from services.simulation.errors import InvalidInput, NotCalibrated, require_same_length
from services.simulation.sequence_simulation import SequenceSimulation
from shared.formats.simulations import ActivationScale

_AT_ONCE = 16
"""Records that are simulated at the same time."""


class CalibrationRecord(TrueActivations, Protocol):
    """A recorded sequence: tokens and an activation each, such as `ActivationRecord`."""

    @property
    def tokens(self) -> Sequence[str]: ...


class NeuronSimulator(ABC):
    """Predicts a component's activations on tokens."""

    @abstractmethod
    async def simulate(self, tokens: Sequence[str]) -> SequenceSimulation:
        """Simulate one sequence."""


class CalibratedNeuronSimulator(NeuronSimulator):
    """Wraps a simulator and maps what it predicts to the component's real activations."""

    kind: ClassVar[CalibrationKind]

    def __init__(
        self, uncalibrated_simulator: NeuronSimulator, calibration: Calibration | None = None
    ) -> None:
        self.uncalibrated_simulator = uncalibrated_simulator
        self.calibration = calibration

    @classmethod
    async def create(
        cls,
        uncalibrated_simulator: NeuronSimulator,
        calibration_activation_records: Sequence[CalibrationRecord],
    ) -> Self:
        """Build and calibrate in one call."""
        simulator = cls(uncalibrated_simulator)
        await simulator.calibrate(calibration_activation_records)
        return simulator

    async def calibrate(self, calibration_activation_records: Sequence[CalibrationRecord]) -> None:
        """Simulate the records, 16 at a time, then fit; the first failure ends all of them."""
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def simulated(record: CalibrationRecord) -> SequenceSimulation:
            async with at_once:
                return await self.uncalibrated_simulator.simulate(record.tokens)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(simulated(record))
                    for record in calibration_activation_records
                ]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        self.calibrate_from_simulations(
            calibration_activation_records, [task.result() for task in tasks]
        )

    def calibrate_from_simulations(
        self,
        calibration_activation_records: Sequence[TrueActivations],
        simulations: Sequence[SimulatedActivations],
    ) -> None:
        """Fit from simulations at hand, one a record.

        Tokens whose expected activation is NaN, since they got no distribution, take no part.

        Raises:
            InvalidInput: lengths differ, there are no tokens, or a number isn't finite.
        """
        require_same_length(
            len(calibration_activation_records),
            "calibration_activation_records",
            len(simulations),
            "simulations",
        )
        true = [np.asarray(record.activations) for record in calibration_activation_records]
        simulated = [np.asarray(simulation.expected_activations) for simulation in simulations]
        for position, (own_true, own_simulated) in enumerate(zip(true, simulated, strict=True)):
            require_same_length(
                len(own_true),
                f"calibration_activation_records[{position}].activations",
                len(own_simulated),
                f"simulations[{position}].expected_activations",
            )
        expected = np.concatenate([np.zeros(0), *simulated])
        predicted = ~np.isnan(expected)
        self.calibration = fit_calibration(
            self.kind, expected[predicted], np.concatenate([np.zeros(0), *true])[predicted]
        )

    def apply_calibration(self, values: Sequence[float]) -> list[float]:
        """Map simulated activations to the component's units; empty in, empty out.

        Raises:
            NotCalibrated: a ValueError: nothing was fitted yet.
        """
        mapped: list[float] = self._fitted().apply(values).tolist()
        return mapped

    async def simulate(self, tokens: Sequence[str]) -> SequenceSimulation:
        """Simulate, and map the expected activations and the values of the distributions.

        The probabilities stay; the result keeps the uncalibrated simulation.
        """
        return calibrated(await self.uncalibrated_simulator.simulate(tokens), self._fitted())

    def _fitted(self) -> Calibration:
        if self.calibration is None:
            raise NotCalibrated(
                f"the {self.kind} calibration isn't fitted: call calibrate() first",
                field="calibration",
            )
        return self.calibration


class UncalibratedNeuronSimulator(CalibratedNeuronSimulator):
    """Passes activations through: the identity needs no calibration records."""

    kind = CalibrationKind.NONE

    def __init__(
        self, uncalibrated_simulator: NeuronSimulator, calibration: Calibration | None = None
    ) -> None:
        super().__init__(uncalibrated_simulator, calibration or fit_calibration(self.kind, [], []))

    async def calibrate(self, calibration_activation_records: Sequence[CalibrationRecord]) -> None:
        """Nothing to fit, so nothing is simulated."""


class LinearCalibratedNeuronSimulator(CalibratedNeuronSimulator):
    """Least squares; leaves the correlation as it is, up to its sign."""

    kind = CalibrationKind.LINEAR


class PercentileMatchingCalibratedNeuronSimulator(CalibratedNeuronSimulator):
    """Maps each percentile of the simulated activations to the same one of the true ones.

    It reproduces the distribution on the calibration records, and claims too much beyond them.
    """

    kind = CalibrationKind.PERCENTILE


class IsotonicCalibratedNeuronSimulator(CalibratedNeuronSimulator):
    """Maps by the ascending function with the least squared error."""

    kind = CalibrationKind.ISOTONIC


SIMULATOR_BY_KIND: dict[CalibrationKind, type[CalibratedNeuronSimulator]] = {
    simulator.kind: simulator
    for simulator in (
        UncalibratedNeuronSimulator,
        LinearCalibratedNeuronSimulator,
        PercentileMatchingCalibratedNeuronSimulator,
        IsotonicCalibratedNeuronSimulator,
    )
}


def calibrated(
    simulation: SequenceSimulation, calibration: Calibration, field: str = "calibration"
) -> SequenceSimulation:
    """`simulation` in the component's units: the values of its distributions are mapped once.

    Raises:
        InvalidInput: naming `field`, where the calibration maps a value out of range.
    """
    try:
        return replace(
            simulation,
            expected_activations=calibration.apply(simulation.expected_activations),
            activation_scale=ActivationScale.NEURON_ACTIVATIONS,
            distribution_values=calibration.apply(simulation.distribution_values),
            uncalibrated_simulation=simulation,
        )
    except InvalidInput as error:
        if error.reason != "OUT_OF_RANGE":
            raise
        raise InvalidInput(
            "what the calibration maps simulated activations to is too large for a double",
            field=field,
            reason=error.reason,
        ) from error
