"""The command line of a service that runs by itself: `python -m services.<name>`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import ConfigurationError
from shared.listening import check_host
from shared.rpc.server import RpcService, ServerOptions, serve
from shared.settings import Deployment, load_deployment

MakeServices = Callable[[Deployment], AbstractAsyncContextManager[Sequence[RpcService]]]
"""Makes a deployment's services, with all that they need, and ends them."""


def run_command(name: str, default_port: int, make_services: MakeServices) -> None:
    """Read the command line and serve until told to end.

    A deployment that can't work ends the process with status 2 and one line that names the key.
    """

    def command(
        config: Annotated[Path, typer.Option(help="The deployment's YAML file.")],
        host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
        port: Annotated[
            int, typer.Option(help="Port to listen on; 0 picks a free one.")
        ] = default_port,
        metrics_port: Annotated[
            int | None,
            typer.Option(help="Port of /metrics; default: metrics.port of the deployment."),
        ] = None,
        end_with_parent: Annotated[
            bool, typer.Option("--end-with-parent", help="End when standard input closes.")
        ] = False,
    ) -> None:
        try:
            deployment = load_deployment(config)
            check_host(host)
            options = ServerOptions(
                name=name,
                host=host,
                port=port,
                metrics_port=deployment.metrics.port if metrics_port is None else metrics_port,
                limits=deployment.limits,
                end_with_parent=end_with_parent,
            )
            serve(lambda: make_services(deployment), options)
        except ConfigurationError as error:
            typer.echo(f"{name}: {error}", err=True)
            raise typer.Exit(2) from None

    command.__doc__ = f"Serve the {name} service of a deployment."
    typer.run(command)
