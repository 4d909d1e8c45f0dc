"""Which server, with which key, and how it is called."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

import httpx

from shared.errors import ConfigurationError

_HIDDEN = "[key]"


class ApiKey:
    """A secret: it is in no repr, and `scrub` takes it out of texts."""

    __slots__ = ("_secret", "variable")

    def __init__(self, secret: str, variable: str = "") -> None:
        self._secret = secret
        self.variable = variable
        """Name of the environment variable that it came from; empty where there is no key."""

    @classmethod
    def from_environment(cls, variable: str | None, key: str) -> Self:
        """The key in that variable, or none where no variable is named.

        Raises:
            ConfigurationError: naming `key`, the variable is not set, or holds no header value.
        """
        if not variable:
            return cls("")
        secret = os.environ.get(variable, "").strip()
        if not secret:
            raise ConfigurationError(key, f"the environment variable {variable} is not set")
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ConfigurationError(
                key, f"the environment variable {variable} holds what no key can be"
            )
        return cls(secret, variable)

    @property
    def headers(self) -> dict[str, str]:
        """What a request carries; the one place where the secret leaves."""
        return {"Authorization": f"Bearer {self._secret}"} if self._secret else {}

    def scrub(self, text: str) -> str:
        """The text without the secret."""
        return text.replace(self._secret, _HIDDEN) if self._secret else text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ApiKey) and self._secret == other._secret

    def __hash__(self) -> int:
        return hash(self._secret)

    def __repr__(self) -> str:
        return f"ApiKey({self.variable or 'none'})"


@dataclass(frozen=True, slots=True)
class Server:
    """An OpenAI-compatible server and one model of it; equal ones can share a client."""

    base_url: str
    """With the version, such as `https://host/v1`; `/completions` is added."""
    model: str
    key: ApiKey = field(default_factory=lambda: ApiKey(""))
    max_concurrent: int = 8
    """Requests that are under way at the same time."""
    timeout_seconds: float = 60.0
    """Of one request; the caller's deadline holds as well."""
    max_attempts: int = 5
    """Times that a request is sent before it counts as failed."""
    logprobs: int = 20
    """Likely tokens asked for at each position, where the server tells so many."""
    max_answer_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError(
                "base_url", "a password in an address gets into logs; name api_key_env instead"
            )
        if not parts.hostname or not _can_be_called(self.base_url):
            raise ConfigurationError("base_url", "the address of a server is needed")
        if parts.query or parts.fragment:
            raise ConfigurationError("base_url", "an address without ? and # is needed")

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.base_url).netloc

    def url(self, route: str) -> str:
        """Address of a route such as `completions`."""
        return f"{self.base_url.rstrip('/')}/{route}"


def _can_be_called(url: str) -> bool:
    try:
        return urlsplit(url).port != 0 and bool(httpx.URL(url).host)
    except (ValueError, httpx.InvalidURL):
        return False
