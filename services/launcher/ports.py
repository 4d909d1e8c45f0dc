"""Ports of this machine that are free."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from shared.errors import ConfigurationError

_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000
_ATTEMPTS = 200
_SECONDS_TO_CONNECT = 5.0


def check_reachable(host: str) -> None:
    """Refuse a host that this machine can't connect to, as where its loopback interface is down.

    Without it every service would start, and none be found.

    Raises:
        ConfigurationError: if a connection to a port of `host` can't be made.
    """
    try:
        with socket.create_server((host, 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection((host, port), timeout=_SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise ConfigurationError(
            "--host",
            f"this machine can't connect to itself at {host}: {error.strerror or error};"
            " is its loopback interface up?",
        ) from error


def reserve_ports(host: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Check that the ports are free and choose one where 0 is wanted; the names are options.

    The ports that are chosen lie outside the range that outgoing connections use, so that they
    stay free until their server has started.

    Raises:
        ConfigurationError: naming the option, if a port is in use.
    """
    given = [(option, port) for option, port in wanted.items() if port]
    for position, (option, port) in enumerate(given):
        for other, taken in given[:position]:
            if port == taken:
                raise ConfigurationError(option, f"port {port} is that of {other} too")
    with ExitStack() as held:
        chosen: dict[str, int] = {}
        for option, port in given:
            try:
                held.enter_context(_bound(host, port))
            except OSError as error:
                raise ConfigurationError(option, _why(host, port, error)) from error
        for option, port in wanted.items():
            if port:
                chosen[option] = port
            else:
                sock = held.enter_context(_free(host))
                chosen[option] = int(sock.getsockname()[1])
        return chosen


def _free(host: str) -> socket.socket:
    highest = _first_ephemeral() - 1
    for _ in range(_ATTEMPTS):
        try:
            # Not a matter of secrecy: only two launchers of one moment must differ.
            return _bound(host, random.randint(_LOWEST, highest))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigurationError("--host", _why(host, 0, error)) from error
    return _bound(host, 0)


def _first_ephemeral() -> int:
    try:
        first = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32_768
    return first if first > _LOWEST + 1000 else 32_768


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        # A port that another socket listens on can be bound to, but not listened on.
        sock.listen(1)
    except BaseException:
        sock.close()
        raise
    return sock


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; choose another, or 0 for a free one"
    return f"can't listen on {host}:{port}: {error.strerror or error}"
