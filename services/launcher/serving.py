"""`neuropil serve`: one service in this process, as a container runs it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from services.launcher.service_names import ServiceName, configured_port
from shared.errors import ConfigurationError
from shared.listening import check_host
from shared.rpc.server import ServerOptions, serve
from shared.settings import load_deployment

# Named and not imported: only the service that is asked for may need torch, or be installed.
_LIFESPANS = {
    ServiceName.RECORDS: ("services.records.app", "record_services"),
    ServiceName.SCALARS: ("services.scalars.app", "scalar_services"),
    ServiceName.SIMULATION: ("services.simulation.app", "simulation_services"),
}
_GATEWAY = ("services.gateway.server", "serve_gateway")


def run_service(
    name: ServiceName,
    config: Path,
    *,
    host: str,
    port: int | None,
    metrics_port: int | None,
    end_with_parent: bool,
) -> None:
    """Run a service until SIGTERM or SIGINT, or until its parent dies if it is to end with it.

    Raises:
        ConfigurationError: if it can't start as configured.
    """
    deployment = load_deployment(config)
    check_host(host)
    port = configured_port(deployment, name) if port is None else port
    metrics_port = deployment.metrics.port if metrics_port is None else metrics_port
    if name is ServiceName.GATEWAY:
        _named(name, *_GATEWAY)(
            deployment,
            host=host,
            port=port,
            metrics_port=metrics_port,
            end_with_parent=end_with_parent,
        )
        return
    lifespan = _named(name, *_LIFESPANS[name])
    options = ServerOptions(
        name=name.value,
        host=host,
        port=port,
        metrics_port=metrics_port,
        limits=deployment.limits,
        end_with_parent=end_with_parent,
    )
    serve(lambda: lifespan(deployment), options)


def _named(service: ServiceName, module: str, function: str) -> Any:
    try:
        return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("services", "shared", "neuropil")):
            raise
        raise ConfigurationError(
            "",
            f"{service} needs {error.name}, which is not installed;"
            f" pip install 'neuropil-services[{service}]'",
        ) from error
