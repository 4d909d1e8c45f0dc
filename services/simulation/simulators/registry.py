"""The simulators of a deployment, by their configured names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.simulation.errors import InvalidInput
from services.simulation.simulators.embedding import EmbeddingSimulator
from services.simulation.simulators.interface import Simulator
from shared.errors import ConfigurationError
from shared.settings import Deployment
from shared.settings import EmbeddingSimulator as EmbeddingSettings


class SimulatorRegistry:
    """Built once from the configuration; requests name a simulator or mean the default one."""

    def __init__(self, simulators: Sequence[Simulator], default: str) -> None:
        self._by_name = {simulator.name: simulator for simulator in simulators}
        self.default = self._by_name[default]

    @classmethod
    def from_deployment(cls, deployment: Deployment) -> SimulatorRegistry:
        """Build the configured simulators; nothing is loaded yet.

        Raises:
            ConfigurationError: a simulator of a kind that this release doesn't have.
        """
        simulators: list[Simulator] = []
        for position, settings in enumerate(deployment.simulators):
            if not isinstance(settings, EmbeddingSettings):
                raise ConfigurationError(
                    f"simulators[{position}].kind",
                    f"{settings.kind} is not implemented in this release; use embedding",
                )
            simulators.append(EmbeddingSimulator(settings.name))
        return cls(simulators, deployment.chosen_simulator)

    def __iter__(self) -> Iterator[Simulator]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Simulator:
        """The simulator of that name, or the default one for an empty name.

        Raises:
            InvalidInput: there is none of that name.
        """
        if not name:
            return self.default
        simulator = self._by_name.get(name)
        if simulator is None:
            raise InvalidInput(
                f"no simulator is named {name!r}; there are {', '.join(self._by_name)}",
                field="simulator",
                reason="UNKNOWN_SIMULATOR",
            )
        return simulator

    def start(self) -> None:
        """Let every simulator begin to load."""
        for simulator in self:
            simulator.start()

    async def close(self) -> None:
        """Close every simulator."""
        for simulator in self:
            await simulator.close()
