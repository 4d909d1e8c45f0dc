"""What the values of keys may be."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

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


def _check_state_place(value: str) -> str:
    if is_remote(value) and ("?" in value or "#" in value):
        raise ValueError(
            "a URL without ? and # is needed; credentials are blobfile's own variables"
        )
    return value


def no_bool(value: Any) -> Any:
    # pydantic reads YAML's `true` as the number 1, which nobody means by it.
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


Address = Annotated[str, AfterValidator(_check_address)]
Port = Annotated[int, BeforeValidator(no_bool), Field(ge=0, le=65535)]
Count = Annotated[int, BeforeValidator(no_bool), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(no_bool), Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Endpoint = Annotated[str, AfterValidator(_check_endpoint)]
StatePlace = Annotated[Text, AfterValidator(_check_state_place)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
