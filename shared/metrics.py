"""Prometheus metrics of a process, on a port of their own."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from prometheus_client import start_http_server

from shared.errors import ConfigurationError

# fmt: off
SECONDS_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0
)
# fmt: on
"""Upper ends of the buckets of every histogram of seconds, so that services can be compared."""


class MetricsServer:
    """Answers `/metrics` on a port; a context manager that stops it again."""

    def __init__(self, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, addr=host)
        except OSError as error:
            raise ConfigurationError(
                "metrics.port", f"can't listen on {host}:{port}: {error.strerror or error}"
            ) from error

    @property
    def port(self) -> int:
        """The port, also where a free one was asked for."""
        port: int = self._server.server_port
        return port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
