"""The command `neuropil`.

Exit codes: 0 for an end as asked, 2 where the command line or the configuration can't be used, 130
after Ctrl-C, else 1. Whatever goes wrong is told in one line on standard error.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from services.launcher.failure import LauncherFailure
from services.launcher.processes import NOT_CONFIGURED, announce_failure
from services.launcher.service_names import DEFAULT_HTTP_PORT, ServiceName
from shared.errors import ConfigurationError

DEMO_DEPLOYMENT = Path(__file__).resolve().parents[2] / "data" / "demo" / "deployment.yaml"
"""In a checkout, where the demo's model and records are."""

app = typer.Typer(
    help="The serving backend for automated interpretability of language models.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Option(help="The deployment's YAML file.")]
Host = Annotated[str, typer.Option(help="Loopback address to listen on.")]
ServicePort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="0 picks a free one; default: that of services.*."),
]


# What a command needs is imported when it runs, so that `neuropil serve records` works where the
# packages of the others are not installed.


@app.command()
def up(
    config: Config,
    http_port: Annotated[
        int, typer.Option(min=0, max=65535, help="0 picks a free one.")
    ] = DEFAULT_HTTP_PORT,
    records_port: ServicePort = None,
    scalars_port: ServicePort = None,
    simulation_port: ServicePort = None,
    host: Host = "127.0.0.1",
) -> None:
    """Run everything on this machine until SIGINT or SIGTERM.

    Prints `ready URL` once every service answers, then a line for each service.
    """
    with _needing_all("up"):
        from services.launcher.up import Listening, run_up

    listening = Listening(host, http_port, records_port, scalars_port, simulation_port)
    asyncio.run(run_up(config, listening))


@app.command()
def serve(
    service: Annotated[ServiceName, typer.Argument(help="The service to run.")],
    config: Config,
    host: Host = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="0 picks a free one; default: as `neuropil up`."),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of /metrics; default: metrics.port."),
    ] = None,
    end_with_parent: Annotated[
        bool, typer.Option("--end-with-parent", help="End when standard input closes.")
    ] = False,
) -> None:
    """Run one service in this process, as a container does."""
    from services.launcher.serving import run_service

    try:
        run_service(
            service,
            config,
            host=host,
            port=port,
            metrics_port=metrics_port,
            end_with_parent=end_with_parent,
        )
    except ConfigurationError as error:
        if not end_with_parent:
            raise
        announce_failure(NOT_CONFIGURED, str(error))
        raise typer.Exit(NOT_CONFIGURED) from None


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write the report to.")] = Path("report"),
    config: Annotated[
        Path, typer.Option(help="The deployment's YAML file; default: the demo's.")
    ] = DEMO_DEPLOYMENT,
) -> None:
    """Do the main job end to end on the demo deployment, and write a report.

    Starts everything on free ports, reads what neurons respond to, derives direct effects on a
    prompt, simulates, calibrates and scores explanations, and stops everything.
    """
    with _needing_all("demo"):
        from services.launcher.demo.command import run_demo

    raise typer.Exit(asyncio.run(run_demo(config, out)))


@app.command()
def score(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="YAML, JSON, JSONL or CSV with layer, component and explanation a row, and, where"
            " the options don't say them, derived_scalar_type and dataset."
        ),
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(help="Dataset of records; without FILE, its explanations are scored."),
    ] = "",
    layer: Annotated[
        list[int] | None, typer.Option(min=0, help="Layer of it, as often as there are; all.")
    ] = None,
    derived_scalar_type: Annotated[str, typer.Option(help="Of the components.")] = "mlp_post_act",
    limit: Annotated[int, typer.Option(min=0, help="Most components; 0: all.")] = 0,
    propose: Annotated[
        bool, typer.Option("--propose", help="Let an explainer propose explanations first.")
    ] = False,
    explainer: Annotated[str, typer.Option(help="Default: the deployment's.")] = "",
    count: Annotated[int, typer.Option(min=1, max=100, help="Proposals a component.")] = 1,
    simulator: Annotated[str, typer.Option(help="Default: the deployment's.")] = "",
    calibration: Annotated[
        str | None, typer.Option(help="none, linear, percentile or isotonic.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="simulation, detection, fuzzing or attention_pairs.")
    ] = None,
    max_sequences: Annotated[
        int, typer.Option(min=0, max=10_000, help="Most sequences to score; 0: all.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Of all random choices.")] = 0,
    budget_tokens: Annotated[
        int,
        typer.Option(min=0, max=2**63 - 1, help="Most tokens of all runs of the key; 0: no limit."),
    ] = 0,
    budget_calls: Annotated[
        int,
        typer.Option(min=0, max=2**63 - 1, help="Most calls of all runs of the key; 0: no limit."),
    ] = 0,
    concurrency: Annotated[
        int, typer.Option(min=0, max=256, help="Explanations at the same time; 0: 4.")
    ] = 0,
    key: Annotated[
        str, typer.Option(help="Of the run that is gone on with; default: made of the input.")
    ] = "",
    put_to: Annotated[str, typer.Option(help="Explanation dataset to store scores in.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("scores"),
    config: Annotated[
        Path, typer.Option(help="The deployment's YAML file; default: the demo's.")
    ] = DEMO_DEPLOYMENT,
    address: Annotated[
        str | None,
        typer.Option(help="Of a simulation service that runs; default: services are started."),
    ] = None,
    records_address: Annotated[
        str | None,
        typer.Option(help="Of its record service; default: services.records of the deployment."),
    ] = None,
) -> None:
    """Score many explanations, and go on where an earlier run of the same command stopped.

    Writes scores.csv, scores.json and scores.png. The exit code is 1 where an explanation could not
    be scored or stored.
    """
    with _needing_all("score"):
        from services.launcher.scoring.command import Target, run_score
        from services.launcher.scoring.options import checked_how, checked_source

    source = checked_source(
        file,
        dataset=dataset,
        layers=layer or [],
        derived_scalar_type=derived_scalar_type,
        limit=limit,
        propose=propose,
        explainer=explainer,
        count=count,
        seed=seed,
    )
    how = checked_how(
        simulator=simulator,
        calibration=calibration,
        method=method,
        max_sequences=max_sequences,
        seed=seed,
        budget_tokens=budget_tokens,
        budget_calls=budget_calls,
        concurrency=concurrency,
        put_to=put_to,
        key=key,
    )
    target = Target(config, address, records_address)
    raise typer.Exit(asyncio.run(run_score(target, source, how, out)))


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def collate(context: typer.Context) -> None:
    """Record what makes a model's components active, over a corpus."""
    # Nothing of this process is needed any more: signals and the exit code are collate's own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "services.collate", *context.args])


def main() -> None:
    """Run the command line of this process and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line; give the exit code."""
    try:
        code = app(args=list(arguments), prog_name="neuropil", standalone_mode=False)
        print(end="", flush=True)
    except TyperException as error:
        return _fail(NOT_CONFIGURED, error.format_message())
    except ConfigurationError as error:
        return _fail(NOT_CONFIGURED, str(error))
    except LauncherFailure as error:
        return _fail(error.exit_code, str(error))
    except OSError as error:
        return _fail(1, str(error))
    return code if isinstance(code, int) else 0


@contextmanager
def _needing_all(command: str) -> Iterator[None]:
    """ConfigurationError where a package is not installed that a command imports."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("services", "shared", "neuropil")):
            raise
        raise ConfigurationError(
            "",
            f"{command} needs {error.name}, which is not installed;"
            " pip install 'neuropil-services[all]'",
        ) from error


def _fail(code: int, message: str) -> int:
    try:
        print(end="", flush=True)
    except OSError:
        # What standard output did not take must not be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    print(f"neuropil: error: {' '.join(message.split())}", file=sys.stderr)
    return code
