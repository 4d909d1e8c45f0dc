"""Runs the gateway as a process: listens, announces, drains, ends."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import Callable, Iterator

import structlog
import uvicorn
import uvloop

from services.gateway.app import create_app
from shared.errors import ConfigurationError
from shared.logs import configure_logs
from shared.metrics import MetricsServer
from shared.rpc.server import DRAIN_SECONDS
from shared.settings import Deployment
from shared.stopping import stopping

_BACKLOG = 2048

_log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """Says when it listens, and leaves signals to us.

    uvicorn would raise them again at its end, and the process not exit with 0.
    """

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve_gateway(
    deployment: Deployment,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    metrics_port: int | None = None,
    end_with_parent: bool = False,
) -> None:
    """Run the gateway until SIGTERM or SIGINT, then let running requests end.

    Port 0 picks a free one. Once it listens it prints ``serving gateway HOST:PORT`` to standard
    output. With `end_with_parent` it also ends when standard input closes, as it does when the
    parent process dies.

    Raises:
        ConfigurationError: if it can't listen there.
    """
    configure_logs("gateway")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        if metrics_port is not None:
            metrics = stack.enter_context(MetricsServer(host, metrics_port))
            _log.info("metrics", address=f"{host}:{metrics.port}")
        uvloop.run(_serve(deployment, host, listener, end_with_parent))
    _log.info("ended")


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that the gateway listens on; port 0 picks a free one.

    Raises:
        ConfigurationError: if it can't.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            "http", f"can't listen on {host}:{port}: {error.strerror or error}"
        ) from error
    # Connections inherit it. Without it the body of an answer waits for the client to acknowledge
    # the headers, which it delays by 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def make_server(deployment: Deployment, announce: Callable[[], None]) -> uvicorn.Server:
    """A server of the deployment's gateway; it calls `announce` once it listens.

    `serve(sockets=[...])` runs it until its `should_exit` is set and running requests have ended.
    """
    return _Server(
        uvicorn.Config(
            create_app(deployment),
            http="httptools",
            loop="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            # Longer than clients and proxies keep theirs: a request would meet its end.
            timeout_keep_alive=75,
            # Nothing looks at a client's address, so none need be taken from headers.
            proxy_headers=False,
            timeout_graceful_shutdown=int(DRAIN_SECONDS),
        ),
        announce,
    )


async def _serve(
    deployment: Deployment, host: str, listener: socket.socket, end_with_parent: bool
) -> None:
    def announce() -> None:
        address = f"{host}:{listener.getsockname()[1]}"
        # What was made until here stays: the collector need not go through it again and again.
        gc.collect()
        gc.freeze()
        _log.info("serving", address=address)
        print(f"serving gateway {address}", flush=True)

    server = make_server(deployment, announce)

    def stop() -> None:
        server.should_exit = True

    async with stopping(stop, end_with_parent=end_with_parent):
        await server.serve(sockets=[listener])
