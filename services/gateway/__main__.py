"""`python -m services.gateway`: the HTTP gateway of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.gateway.server import serve_gateway
from shared.errors import ConfigurationError
from shared.listening import check_host
from shared.settings import load_deployment


def command(
    config: Annotated[Path, typer.Option(help="The deployment's YAML file.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8000,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of /metrics; default: metrics.port of the deployment.")
    ] = None,
    end_with_parent: Annotated[
        bool, typer.Option("--end-with-parent", help="End when standard input closes.")
    ] = False,
) -> None:
    """Serve HTTP and JSON."""
    try:
        deployment = load_deployment(config)
        check_host(host)
        serve_gateway(
            deployment,
            host=host,
            port=port,
            metrics_port=deployment.metrics.port if metrics_port is None else metrics_port,
            end_with_parent=end_with_parent,
        )
    except ConfigurationError as error:
        typer.echo(f"gateway: {error}", err=True)
        raise typer.Exit(2) from None


def main() -> None:
    """Run the command."""
    typer.run(command)


if __name__ == "__main__":
    main()
