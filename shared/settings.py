"""The one configuration of a deployment.

A YAML file (JSON is YAML) describes everything that runs together; every key can also be set by
an environment variable, `NEUROPIL_` and the path in capitals joined by `__`, which wins. A list or
an object in a variable is given whole, as JSON. The configuration is read once, at start, and is
immutable afterwards. Relative paths are relative to the file's folder and absolute once loaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError

from shared.errors import ConfigurationError

ENV_PREFIX = "NEUROPIL_"

_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_ADDRESS = re.compile(r"^(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}$")

_ENDPOINT = re.compile(
    r"^https?://(\[[0-9a-fA-F:]+\]|[^\s:/?#@\[\]]+)(:\d{1,5})?/?$", re.IGNORECASE
)


def is_remote(path: str) -> bool:
    """Whether `path` names a blob by URL (`gs://`, `az://`, `https://`) and not a local file."""
    return bool(_URL.match(path))


def _check_address(value: str) -> str:
    if not _ADDRESS.match(value) or int(value.rsplit(":", 1)[1]) > 65535:
        raise ValueError("an address is HOST:PORT, for example 127.0.0.1:50051")
    return value


def _check_endpoint(value: str) -> str:
    if not _ENDPOINT.match(value):
        raise ValueError("an endpoint is http:// or https://, a host and a port, and nothing more")
    return value.rstrip("/")


def _no_bool(value: Any) -> Any:
    # pydantic reads YAML's `true` as the number 1, which nobody means by it.
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


Address = Annotated[str, AfterValidator(_check_address)]
Port = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=65535)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Endpoint = Annotated[str, AfterValidator(_check_endpoint)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dataset(_Section):
    """Records of the components of one model, and where their explanations are."""

    short_name: Text
    """Name that requests use; with `derived_scalar_type` it identifies the dataset."""
    derived_scalar_type: Text
    """What the records hold, for example `mlp_post_act` or `attn_write_norm`."""
    user_visible_name: Text
    neuron_dataset_path: Text
    """Folder or blob URL with `<layer>/<index>.json`."""
    explanation_dataset_paths: tuple[str, ...] = ()
    """Folders or blob URLs with `<layer>/<index>.jsonl`."""
    cached_explanations_path: str | None = None
    """A folder each of whose folders is one more explanation dataset."""


class Cache(_Section):
    """The caches in front of blob storage."""

    url: str | None = None
    """Redis; absent: `up` starts an embedded server, one service alone uses memory only."""
    ttl_seconds: Count = 86_400
    memory_megabytes: Count = 256

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"^(redis|rediss|unix)://", url):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return url


class Storage(_Section):
    """How blob stores are reached; credentials are in blobfile's own variables."""

    azure_endpoint: Endpoint | None = None
    """Server that answers for every account of Azure storage; absent: the public ones."""
    gcs_endpoint: Endpoint | None = None
    """Server that answers in the place of storage.googleapis.com."""
    connect_timeout_seconds: Seconds = 2.0
    read_timeout_seconds: Seconds = 10.0
    """Longest silence of a store in the middle of an answer."""
    timeout_seconds: Seconds = 30.0
    """Longest that one read, listing or write may take, its retries included."""
    retries: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=10)] = 2
    requests_per_store: Annotated[int, BeforeValidator(_no_bool), Field(gt=0, le=256)] = 16
    """Requests that run at once, for each account of Azure and for Google."""


class Search(_Section):
    """The search over explanations."""

    index_path: str | None = None
    """A local folder that the index is kept in; absent: it is made anew at every start."""
    rescan_seconds: Seconds = 60.0
    """How long after a scan over the explanation datasets the next one begins."""
    semantic: bool = True
    """Whether to search by meaning too, where the extra `search` is installed."""

    @field_validator("index_path")
    @classmethod
    def _check_index_path(cls, path: str | None) -> str | None:
        if path is not None and is_remote(path):
            raise ValueError("must be a local folder")
        return path


class Autoencoder(_Section):
    """A sparse autoencoder beside the subject model."""

    name: Text
    path: Text
    """One safetensors file, or a folder in the layout that SAELens writes."""


class Model(_Section):
    """The subject model whose scalars are derived."""

    name: Text
    path: Text
    """A Hugging Face directory: config.json, model.safetensors, tokenizer.json."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    excluded_tokens: str | None = None
    """A JSON list of token strings that top-token lists leave out."""
    autoencoders: tuple[Autoencoder, ...] = ()


class EmbeddingSimulator(_Section):
    """Sentence embeddings of explanation and tokens; needs no service and no key."""

    name: Text
    kind: Literal["embedding"]


class CompletionsSimulator(_Section):
    """An OpenAI-compatible completions server."""

    name: Text
    kind: Literal["completions"]
    base_url: Annotated[str, Field(pattern=r"^https?://")]
    model: Text
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""


class CausalLmSimulator(_Section):
    """A local Hugging Face language model."""

    name: Text
    kind: Literal["causal_lm"]
    path: Text
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"


Simulator = Annotated[
    EmbeddingSimulator | CompletionsSimulator | CausalLmSimulator, Field(discriminator="kind")
]


class Services(_Section):
    """Where the services are; `up` fills this in for what it starts."""

    records: Address = "127.0.0.1:50051"
    scalars: Address = "127.0.0.1:50052"
    simulation: Address = "127.0.0.1:50053"


class Http(_Section):
    """The gateway."""

    cors_origins: tuple[str, ...] = ()
    """Origins allowed besides http(s) on localhost, 127.0.0.1 and [::1], any port."""
    max_body_megabytes: Count = 16
    answer_cache_megabytes: Annotated[int, BeforeValidator(_no_bool), Field(ge=0)] = 64
    """Memory for answers of the record routes; 0 keeps none."""
    answer_cache_seconds: Seconds = 60.0
    """How long an answer is given before the record service is asked again."""


class Limits(_Section):
    """What a service accepts before it sheds load."""

    queue: Count = 256
    """Calls that may wait or run at once in one process."""
    default_deadline_seconds: Seconds = 60.0
    """Deadline of a call that brings none."""
    message_megabytes: Count = 16


class Metrics(_Section):
    """Prometheus metrics on a port of their own."""

    port: Port = 9464
    """0: a free one."""


class Auth(_Section):
    """Who may call; absent tokens mean open, on loopback only."""

    tokens_file: str | None = None


class Tls(_Section):
    """Certificates of the services."""

    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None


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
    calibration: Literal["none", "linear", "percentile"] = "linear"
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
        names = [simulator.name for simulator in self.simulators]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"simulators: the name {name!r} is there twice")
        if self.default_simulator is not None and self.default_simulator not in names:
            raise ValueError(
                f"default_simulator: {self.default_simulator!r} is none of simulators {names}"
            )
        if not names:
            raise ValueError("simulators: an empty list; leave the key out for the embedded one")
        if self.auth.tokens_file or self.tls.certificate or self.tls.key or self.tls.client_ca:
            # Starting open although the file asks for protection would be the worst answer.
            raise ValueError("auth and tls: tokens and certificates aren't served by this release")
        return self

    @property
    def chosen_simulator(self) -> str:
        """Name of the simulator that a request means when it names none."""
        return self.default_simulator or self.simulators[0].name


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
    tags = {"embedding", "completions", "causal_lm"}
    key = ""
    for part in first["loc"]:
        if isinstance(part, int):
            key += f"[{part}]"
        elif part not in tags:
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
    return deployment.model_copy(
        update={
            "datasets": datasets,
            "allowed_path_prefixes": tuple(absolute(p) for p in deployment.allowed_path_prefixes),
            "search": deployment.search.model_copy(
                update={"index_path": optional(deployment.search.index_path)}
            ),
            "model": model,
        }
    )


def _require(path: str, key: str) -> None:
    if not is_remote(path) and not Path(path).exists():
        raise ConfigurationError(key, f"{path} does not exist")
