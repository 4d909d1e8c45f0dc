"""`neuropil demo`: starts the demo deployment, does the main job, reports, and ends it all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

import neuropil
from services.launcher.child_logs import kept_log
from services.launcher.demo.job import DemoResult, do_main_job
from services.launcher.demo.report import check_folder, write_report
from services.launcher.demo.table import summary
from services.launcher.failure import LauncherFailure
from services.launcher.supervision import unless_a_service_ends
from services.launcher.up import (
    Listening,
    RunningDeployment,
    running_deployment,
    say,
    until_signal,
)
from shared.errors import ConfigurationError, NotFound
from shared.settings import load_deployment

FREE_PORTS = Listening(http_port=0, records_port=0, scalars_port=0, simulation_port=0)
CALL_SECONDS = 300.0
"""A first call may wait for the simulator's model, on a machine that does much else."""


async def run_demo(config: Path, out: Path) -> int:
    """Run the demo on a deployment with a model and explained neurons; give the exit code.

    Raises:
        ConfigurationError: if the deployment or the folder for the report can't be used.
        LauncherFailure: if a service or a call fails, or the report can't be written.
    """
    check_folder(out)
    if load_deployment(config).model is None:
        raise ConfigurationError("model", "is missing; the demo derives scalars from a model")
    with kept_log() as log:
        try:
            number = await until_signal(_demo(config, out, Console(), log))
        except (neuropil.NeuropilError, NotFound) as error:
            raise LauncherFailure(str(error)) from error
    if number is not None:
        say("the demo was stopped; nothing is left of it")
        return 128 + number
    return 0


async def _demo(config: Path, out: Path, console: Console, log: int) -> None:
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:

        def step(name: str, total: int) -> Callable[[], None]:
            task = progress.add_task(name, total=total)
            return lambda: progress.advance(task)

        started = step("Start the services", 1)
        async with running_deployment(config, FREE_PORTS, log=log) as running:
            started()
            result = await _unless_a_service_ends(running, step)
            written = step("Write the report", 1)
            try:
                path = await asyncio.to_thread(write_report, result, out)
            except OSError as error:
                raise LauncherFailure(f"no report in {out}: {error.strerror}") from error
            written()
            ending = step("Stop the services", 1)
        ending()
    console.print()
    console.print(summary(result))
    console.print(f"\nThe report is in {path}", highlight=False, soft_wrap=True)


async def _unless_a_service_ends(
    running: RunningDeployment, step: Callable[[str, int], Callable[[], None]]
) -> DemoResult:
    # Closed at the end of the block, also where a signal ends it: then the thread's call fails.
    with neuropil.connect(
        records=running.addresses["records"],
        scalars=running.addresses["scalars"],
        simulation=running.addresses["simulation"],
        timeout=CALL_SECONDS,
    ) as client:
        return await unless_a_service_ends(
            running.supervisor, asyncio.to_thread(do_main_job, client, step)
        )
