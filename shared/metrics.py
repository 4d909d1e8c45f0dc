"""Prometheus metrics of a process, on a port of their own."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from prometheus_client import start_http_server

from shared.errors import ConfigurationError


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
