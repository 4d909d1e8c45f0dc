"""The language models of a deployment: simulators that name the same one share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from shared.settings import CausalLmSimulator, ChatSimulator, CompletionsSimulator, Simulator

if TYPE_CHECKING:
    from services.simulation.language_models.local.language_model import LocalLanguageModel
    from services.simulation.language_models.remote.model import RemoteLanguageModel
    from services.simulation.language_models.remote.server import Server


class LanguageModelPool:
    """Makes each language model once; nothing is loaded or asked yet.

    A local model is one for its folder, device and type of numbers; it gets the largest cache and
    batch that any of its simulators is configured with. A remote one is one for its server, model,
    key, limits and way of being asked.
    """

    def __init__(self, settings: Sequence[Simulator]) -> None:
        self._settings = settings
        self._local: dict[tuple[str, str, str], LocalLanguageModel] = {}
        self._remote: dict[tuple[Server, str], RemoteLanguageModel] = {}

    def local(self, settings: CausalLmSimulator) -> LocalLanguageModel:
        """The model of a folder.

        Raises:
            ConfigurationError: the folder can't hold a model.
        """
        from services.simulation.language_models.local.language_model import LocalLanguageModel
        from services.simulation.language_models.local.loading import check_folder

        identity = _local_identity(settings)
        if identity not in self._local:
            check_folder(settings.path)
            sharing = [
                each
                for each in self._settings
                if isinstance(each, CausalLmSimulator) and _local_identity(each) == identity
            ]
            self._local[identity] = LocalLanguageModel(
                settings.path,
                settings.device,
                settings.dtype,
                batch_tokens=max(each.batch_tokens for each in sharing),
                cache_megabytes=max(each.cache_megabytes for each in sharing),
            )
        return self._local[identity]

    def remote(
        self,
        settings: CompletionsSimulator | ChatSimulator,
        api: Literal["completions", "chat"],
    ) -> RemoteLanguageModel:
        """The model behind a server.

        Raises:
            ConfigurationError: the variable of its key is not set, or its address is of no use.
                As everywhere here, its key is that within the simulator's settings.
        """
        from services.simulation.language_models.remote.model import RemoteLanguageModel
        from services.simulation.language_models.remote.server import ApiKey, Server

        server = Server(
            settings.base_url,
            settings.model,
            ApiKey.from_environment(settings.api_key_env, "api_key_env"),
            max_concurrent=settings.max_concurrent,
            timeout_seconds=settings.timeout_seconds,
            max_attempts=settings.max_attempts,
        )
        identity = (server, api)
        if identity not in self._remote:
            self._remote[identity] = RemoteLanguageModel(server, api)
        return self._remote[identity]


def _local_identity(settings: CausalLmSimulator) -> tuple[str, str, str]:
    return settings.path, settings.device, settings.dtype
