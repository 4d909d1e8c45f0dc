"""All sections of the file together, and what has to fit between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.settings.data import Cache, Dataset, Search, Storage
from shared.settings.models import Model
from shared.settings.serving import Auth, Http, Limits, Metrics, Services, Tls
from shared.settings.simulation import (
    ContextExplainer,
    EmbeddingSimulator,
    Explainer,
    LanguageModelExplainer,
    Simulator,
)
from shared.settings.values import StatePlace

ENV_PREFIX = "NEUROPIL_"


class Deployment(BaseSettings):
    """A whole deployment; see `docs/configuration.md` for the file."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    datasets: tuple[Dataset, ...] = ()
    allowed_path_prefixes: tuple[str, ...] = ()
    """Paths that a request may name besides the datasets' own."""
    cache: Cache = Cache()
    storage: Storage = Storage()
    search: Search = Search()
    model: Model | None = None
    """Absent: derived scalars aren't served."""
    simulators: tuple[Simulator, ...] = (EmbeddingSimulator(name="embedding", kind="embedding"),)
    default_simulator: str | None = None
    """Absent: the first one."""
    explainers: tuple[Explainer, ...] = (ContextExplainer(name="context", kind="context"),)
    default_explainer: str | None = None
    """Absent: the first one."""
    calibration: Literal["none", "linear", "percentile", "isotonic"] = "linear"
    simulation_state: StatePlace | None = None
    """Folder or blob URL where bulk runs and calibrations are kept; absent: they aren't."""
    services: Services = Services()
    http: Http = Http()
    limits: Limits = Limits()
    metrics: Metrics = Metrics()
    auth: Auth = Auth()
    tls: Tls = Tls()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        seen: set[tuple[str, str]] = set()
        for position, dataset in enumerate(self.datasets):
            identity = (dataset.short_name, dataset.derived_scalar_type)
            if identity in seen:
                raise ValueError(
                    f"datasets[{position}]: {identity[0]!r} with {identity[1]!r} is there twice"
                )
            seen.add(identity)
        names = _checked_names("simulator", self.simulators, self.default_simulator)
        _checked_names("explainer", self.explainers, self.default_explainer)
        for position, explainer in enumerate(self.explainers):
            if not isinstance(explainer, LanguageModelExplainer):
                continue
            key = f"explainers[{position}].simulator"
            if explainer.simulator not in names:
                raise ValueError(f"{key}: {explainer.simulator!r} is none of simulators {names}")
            kind = self.simulators[names.index(explainer.simulator)].kind
            if kind in ("embedding", "token_head"):
                raise ValueError(f"{key}: a simulator of kind {kind} runs no language model")
        if self.auth.tokens_file or self.tls.certificate or self.tls.key or self.tls.client_ca:
            # Starting open although the file asks for protection would be the worst answer.
            raise ValueError("auth and tls: tokens and certificates aren't served by this release")
        return self

    @property
    def chosen_simulator(self) -> str:
        """Name of the simulator that a request means when it names none."""
        return self.default_simulator or self.simulators[0].name

    @property
    def chosen_explainer(self) -> str:
        """Name of the explainer that a request means when it names none."""
        return self.default_explainer or self.explainers[0].name


def _checked_names(
    what: str, entries: Sequence[Simulator] | Sequence[Explainer], default: str | None
) -> list[str]:
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what}s: the name {name!r} is there twice")
    if default is not None and default not in names:
        raise ValueError(f"default_{what}: {default!r} is none of {what}s {names}")
    if not names:
        raise ValueError(f"{what}s: an empty list; leave the key out for the embedded one")
    return names
