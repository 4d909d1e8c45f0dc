"""The one configuration of a deployment.

A YAML file (JSON is YAML) describes everything that runs together; every key can also be set by
an environment variable, `NEUROPIL_` and the path in capitals joined by `__`, which wins. A list or
an object in a variable is given whole, as JSON. The configuration is read once, at start, and is
immutable afterwards. Relative paths are relative to the file's folder and absolute once loaded.

A section of the file is a class of the module that its docstring names it in: `data`, `models`,
`simulation`, `serving`; `deployment` puts them together.
"""

from __future__ import annotations

from shared.settings.data import Cache, Dataset, Search, Storage
from shared.settings.deployment import ENV_PREFIX, Deployment
from shared.settings.loading import load_deployment
from shared.settings.models import Autoencoder, Model
from shared.settings.serving import Auth, Http, Limits, Metrics, Services, Tls
from shared.settings.simulation import (
    CausalLmSimulator,
    ChatSimulator,
    CompletionsSimulator,
    ContextExplainer,
    EmbeddingSimulator,
    Explainer,
    LanguageModelExplainer,
    Simulator,
    TokenHeadSimulator,
)
from shared.settings.values import is_remote

__all__ = [
    "ENV_PREFIX",
    "Auth",
    "Autoencoder",
    "Cache",
    "CausalLmSimulator",
    "ChatSimulator",
    "CompletionsSimulator",
    "ContextExplainer",
    "Dataset",
    "Deployment",
    "EmbeddingSimulator",
    "Explainer",
    "Http",
    "LanguageModelExplainer",
    "Limits",
    "Metrics",
    "Model",
    "Search",
    "Services",
    "Simulator",
    "Storage",
    "Tls",
    "TokenHeadSimulator",
    "is_remote",
    "load_deployment",
]
