"""The simulators of a deployment, by their configured names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.simulation.errors import InvalidInput
from services.simulation.language_models.pool import LanguageModelPool
from services.simulation.simulators.interface import Simulator
from shared.errors import ConfigurationError
from shared.settings import (
    CausalLmSimulator,
    ChatSimulator,
    CompletionsSimulator,
    Deployment,
    EmbeddingSimulator,
    TokenHeadSimulator,
)
from shared.settings import Simulator as Settings


class SimulatorRegistry:
    """Built once from the configuration; requests name a simulator or mean the default one."""

    def __init__(self, simulators: Sequence[Simulator], default: str) -> None:
        self._by_name = {simulator.name: simulator for simulator in simulators}
        self.default = self._by_name[default]

    @classmethod
    def from_deployment(cls, deployment: Deployment) -> SimulatorRegistry:
        """Build the configured simulators; nothing is loaded yet.

        Raises:
            ConfigurationError: naming the key: a folder that can't hold a model, a prompt that
                isn't there, a variable for a key that isn't set, or a library that is missing.
        """
        pool = LanguageModelPool(deployment.simulators)
        simulators = []
        for position, settings in enumerate(deployment.simulators):
            key = f"simulators[{position}]"
            try:
                simulators.append(_built(settings, pool))
            except ConfigurationError as error:
                where = f"{key}.{error.key}" if error.key else key
                raise ConfigurationError(where, error.message) from error
            except ModuleNotFoundError as error:
                raise ConfigurationError(
                    f"{key}.kind", f"{settings.kind} needs {error.name}, which is not installed"
                ) from error
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


def _built(settings: Settings, pool: LanguageModelPool) -> Simulator:
    # Imported where it is needed: a deployment without local models runs without torch.
    match settings:
        case EmbeddingSimulator():
            from services.simulation.simulators.embedding import EmbeddingSimulator as Embedding

            return Embedding(settings.name)
        case CausalLmSimulator():
            from services.simulation.simulators.causal_lm import CausalLmSimulator as CausalLm

            return CausalLm(
                settings.name,
                pool.local(settings),
                method=settings.method,
                prompt=settings.prompt,
                batch_tokens=settings.batch_tokens,
            )
        case CompletionsSimulator():
            from services.simulation.simulators.completions import (
                CompletionsSimulator as Completions,
            )

            return Completions(
                settings.name,
                pool.remote(settings, "completions"),
                method=settings.method,
                prompt=settings.prompt,
            )
        case ChatSimulator():
            from services.simulation.simulators.chat import ChatSimulator as Chat

            return Chat(settings.name, pool.remote(settings, "chat"), prompt=settings.prompt)
        case TokenHeadSimulator():
            from services.simulation.simulators.token_head import TokenHeadSimulator as TokenHead

            return TokenHead(settings.name, settings.path, settings.device)
