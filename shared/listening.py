"""Where a process may listen."""

from __future__ import annotations

import ipaddress

from shared.errors import ConfigurationError


def check_host(host: str) -> None:
    """Refuse to listen where other machines could call services that ask for no token.

    Raises:
        ConfigurationError: if `host` is not loopback.
    """
    if host == "localhost":
        return
    try:
        if ipaddress.IPv4Address(host).is_loopback:
            return
    except ipaddress.AddressValueError:
        pass
    raise ConfigurationError(
        "--host",
        f"{host!r} is no IPv4 loopback address such as 127.0.0.1; without auth.tokens_file the"
        " services are open, on loopback only",
    )
