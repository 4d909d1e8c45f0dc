"""From the file and the environment to a deployment, or to an error that names the key."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import yaml
from pydantic import ValidationError
from pydantic_settings.exceptions import SettingsError

from shared.errors import ConfigurationError
from shared.settings.deployment import ENV_PREFIX, Deployment
from shared.settings.simulation import CausalLmSimulator, Simulator, TokenHeadSimulator
from shared.settings.values import is_remote

_KINDS = {
    *("embedding", "causal_lm", "completions", "chat", "token_head"),
    *("context", "language_model"),
}
"""Kinds of entries of a list, which pydantic puts into the paths of its errors."""


def load_deployment(path: Path) -> Deployment:
    """Read the deployment's file, apply the environment, and resolve relative paths.

    Raises:
        ConfigurationError: naming the key, if the file is missing, isn't YAML, has an unknown key,
            a value of the wrong type, or names a model or an autoencoder that doesn't exist.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError("", f"can't read the configuration {path}: {error}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError("", f"{path} is not YAML: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigurationError("", f"{path} must hold a mapping of keys to values")
    for key in content:
        if key not in Deployment.model_fields:
            raise ConfigurationError(str(key), "unknown key")
    _refuse_unknown_variables()
    try:
        deployment = Deployment(**content)
    except ValidationError as error:
        raise _explain(error) from error
    except SettingsError as error:
        raise ConfigurationError(
            "", f"an environment variable can't be read: {error}; lists and objects are JSON"
        ) from error
    return _resolve(deployment, path.resolve().parent)


def _refuse_unknown_variables() -> None:
    # pydantic-settings passes over variables of no known section. Only nested names are refused:
    # a cluster sets NEUROPIL_..._SERVICE_HOST and the like for services of that name.
    for name in os.environ:
        if name.startswith(ENV_PREFIX) and "__" in name:
            section = name.removeprefix(ENV_PREFIX).split("__")[0].lower()
            if section not in Deployment.model_fields:
                raise ConfigurationError(name, f"an environment variable of no section {section!r}")


def _explain(error: ValidationError) -> ConfigurationError:
    first = error.errors()[0]
    key = ""
    for part in first["loc"]:
        if isinstance(part, int):
            key += f"[{part}]"
        elif part not in _KINDS:
            key += f".{part}" if key else part
    kind = first["type"]
    if kind == "extra_forbidden":
        message = "unknown key"
    elif kind == "missing":
        message = "is needed and missing"
    elif kind == "value_error":
        message = str(first.get("ctx", {}).get("error", first["msg"]))
    elif kind == "tuple_type":
        message = f"a list is needed, not {first['input']!r:.80}"
    elif kind in {"model_type", "model_attributes_type", "dict_type"}:
        message = f"a mapping of keys to values is needed, not {first['input']!r:.80}"
    elif kind == "string_pattern_mismatch":
        message = f"{first['input']!r:.80} must match {first['ctx']['pattern']}"
    else:
        message = f"{first['msg']}, not {first['input']!r:.80}"
    return ConfigurationError(key, message)


def _resolve(deployment: Deployment, folder: Path) -> Deployment:
    def absolute(path: str) -> str:
        if is_remote(path):
            return path
        full = Path(path).expanduser()
        return str(full if full.is_absolute() else (folder / full)).rstrip("/") or "/"

    def optional(path: str | None) -> str | None:
        return None if path is None else absolute(path)

    datasets = tuple(
        dataset.model_copy(
            update={
                "neuron_dataset_path": absolute(dataset.neuron_dataset_path),
                "explanation_dataset_paths": tuple(
                    absolute(p) for p in dataset.explanation_dataset_paths
                ),
                "cached_explanations_path": optional(dataset.cached_explanations_path),
            }
        )
        for dataset in deployment.datasets
    )
    model = deployment.model
    if model is not None:
        model = model.model_copy(
            update={
                "path": absolute(model.path),
                "excluded_tokens": optional(model.excluded_tokens),
                "autoencoders": tuple(
                    a.model_copy(update={"path": absolute(a.path)}) for a in model.autoencoders
                ),
            }
        )
        _require(model.path, "model.path")
        if model.excluded_tokens is not None:
            _require(model.excluded_tokens, "model.excluded_tokens")
        for position, autoencoder in enumerate(model.autoencoders):
            _require(autoencoder.path, f"model.autoencoders[{position}].path")
    simulators = tuple(
        _with_paths(simulator, position, absolute)
        for position, simulator in enumerate(deployment.simulators)
    )
    return deployment.model_copy(
        update={
            "datasets": datasets,
            "simulators": simulators,
            "simulation_state": optional(deployment.simulation_state),
            "allowed_path_prefixes": tuple(absolute(p) for p in deployment.allowed_path_prefixes),
            "search": deployment.search.model_copy(
                update={"index_path": optional(deployment.search.index_path)}
            ),
            "model": model,
        }
    )


def _with_paths(simulator: Simulator, position: int, absolute: Callable[[str], str]) -> Simulator:
    if not isinstance(simulator, CausalLmSimulator | TokenHeadSimulator):
        return simulator
    path = absolute(simulator.path)
    _require(path, f"simulators[{position}].path")
    return simulator.model_copy(update={"path": path})


def _require(path: str, key: str) -> None:
    if not is_remote(path) and not Path(path).exists():
        raise ConfigurationError(key, f"{path} does not exist")
