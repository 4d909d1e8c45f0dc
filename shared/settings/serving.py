"""`services`, `http`, `limits`, `metrics`, `auth`, `tls`: how all of it is served."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from shared.settings.values import (
    Address,
    Count,
    Port,
    Seconds,
    Section,
    no_bool,
)


class Services(Section):
    """Where the services are; `up` fills this in for what it starts."""

    records: Address = "127.0.0.1:50051"
    scalars: Address = "127.0.0.1:50052"
    simulation: Address = "127.0.0.1:50053"


class Http(Section):
    """The gateway."""

    cors_origins: tuple[str, ...] = ()
    """Origins allowed besides http(s) on localhost, 127.0.0.1 and [::1], any port."""
    max_body_megabytes: Count = 16
    answer_cache_megabytes: Annotated[int, BeforeValidator(no_bool), Field(ge=0)] = 64
    """Memory for answers of the record routes; 0 keeps none."""
    answer_cache_seconds: Seconds = 60.0
    """How long an answer is given before the record service is asked again."""


class Limits(Section):
    """What a service accepts before it sheds load."""

    queue: Count = 256
    """Calls that may wait or run at once in one process."""
    default_deadline_seconds: Seconds = 60.0
    """Deadline of a call that brings none."""
    message_megabytes: Count = 16


class Metrics(Section):
    """Prometheus metrics on a port of their own."""

    port: Port = 9464
    """0: a free one."""


class Auth(Section):
    """Who may call; absent tokens mean open, on loopback only."""

    tokens_file: str | None = None


class Tls(Section):
    """Certificates of the services."""

    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None
