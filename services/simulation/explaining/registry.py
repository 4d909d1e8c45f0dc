"""The explainers of a deployment, by their configured names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.simulation.errors import InvalidInput
from services.simulation.explaining.context import ContextExplainer
from services.simulation.explaining.interface import Explainer
from services.simulation.explaining.language_model import LanguageModelExplainer
from services.simulation.simulators.registry import SimulatorRegistry
from shared.settings import ContextExplainer as ContextSettings
from shared.settings import Deployment


class ExplainerRegistry:
    """Built once from the configuration; requests name an explainer or mean the default one."""

    def __init__(self, explainers: Sequence[Explainer], default: str) -> None:
        self._by_name = {explainer.name: explainer for explainer in explainers}
        self.default = self._by_name[default]

    @classmethod
    def from_deployment(
        cls, deployment: Deployment, simulators: SimulatorRegistry
    ) -> ExplainerRegistry:
        """Build the configured explainers, on the language models of the simulators."""
        explainers: list[Explainer] = []
        for settings in deployment.explainers:
            if isinstance(settings, ContextSettings):
                explainers.append(ContextExplainer(settings.name))
            else:
                explainers.append(
                    LanguageModelExplainer(settings.name, simulators.get(settings.simulator))
                )
        return cls(explainers, deployment.chosen_explainer)

    def __iter__(self) -> Iterator[Explainer]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Explainer:
        """The explainer of that name, or the default one for an empty name.

        Raises:
            InvalidInput: there is none of that name.
        """
        if not name:
            return self.default
        explainer = self._by_name.get(name)
        if explainer is None:
            raise InvalidInput(
                f"no explainer is named {name!r}; there are {', '.join(self._by_name)}",
                field="explainer",
                reason="UNKNOWN_EXPLAINER",
            )
        return explainer
