"""One explanation with one simulator: the simulator that Python users pass around."""

from __future__ import annotations

from collections.abc import Sequence

from services.simulation.calibration.calibrated_simulator import NeuronSimulator
from services.simulation.sequence_simulation import SequenceSimulation
from services.simulation.simulators.interface import (
    DEFAULT_MIN_COVERAGE,
    SimulationCost,
    Simulator,
    ValidityReport,
)


class ExplanationNeuronSimulator(NeuronSimulator):
    """Simulates what one explanation describes; adds up what that cost and how far it is valid."""

    def __init__(
        self,
        simulator: Simulator,
        explanation: str,
        *,
        min_coverage: float = DEFAULT_MIN_COVERAGE,
    ) -> None:
        self.simulator = simulator
        self.explanation = explanation
        self.min_coverage = min_coverage
        self.cost = SimulationCost()
        self.report = ValidityReport()

    async def simulate(self, tokens: Sequence[str]) -> SequenceSimulation:
        """Simulate one sequence, on the scale 0 to 10.

        Raises:
            FailedPrecondition: fewer tokens than `min_coverage` got a distribution.
            InvalidInput, ResourceExhausted, Unavailable: as the simulator says.
        """
        results = [
            result async for result in self.simulator.simulate(self.explanation, [tuple(tokens)])
        ]
        (result,) = results
        self.cost += result.cost
        self.report += result.report
        result.report.require(self.min_coverage)
        return result.simulation()
