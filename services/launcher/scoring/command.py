"""`neuropil score`: finds what is to be scored, scores it in a bulk run, and shows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import neuropil
from neuropil.channel import MEBIBYTE, checked_address
from services.launcher.child_logs import kept_log
from services.launcher.demo.command import CALL_SECONDS, FREE_PORTS
from services.launcher.demo.report import check_folder
from services.launcher.failure import LauncherFailure
from services.launcher.scoring.bulk_run import (
    HowToScore,
    check_size,
    key_of,
    requests_of,
    score_all,
)
from services.launcher.scoring.explained import (
    Defaults,
    Explained,
    Proposing,
    Selection,
    from_dataset,
    proposed,
    read_file,
)
from services.launcher.scoring.files import write_files
from services.launcher.scoring.outcomes import FAILED, REUSED, SCORED, Outcomes
from services.launcher.scoring.table import print_outcomes, sentence
from services.launcher.supervision import Supervisor, unless_a_service_ends
from services.launcher.up import running_deployment, say, until_signal
from shared.errors import ConfigurationError
from shared.settings import ENV_PREFIX, load_deployment

NEEDED = ("records", "simulation")
"""Services that scoring runs on."""

_STATE = "state"


@dataclass(frozen=True)
class Target:
    """Services to connect to, or a deployment to start."""

    config: Path
    simulation: str | None = None
    """Address of a simulation service that runs; None: one is started."""
    records: str | None = None
    """Address of its record service; None: that of the configuration."""


@dataclass(frozen=True)
class Source:
    """What is scored: a file, or components of a dataset."""

    file: Path | None
    selection: Selection
    proposing: Proposing | None


def _step(progress: Progress, name: str) -> Callable[[int, int], None]:
    task = progress.add_task(name, total=None, spent="")
    return lambda done, total: progress.update(task, completed=done, total=total)


async def run_score(target: Target, source: Source, how: HowToScore, out: Path) -> int:
    """Score explanations; give the exit code: 1 where one failed or was not stored.

    Raises:
        ConfigurationError: if the input, the deployment or the folder can't be used.
        LauncherFailure: if a service or a call fails, or a file can't be written.
    """
    check_folder(out)
    _check(target)
    explained: list[Explained] | None = None
    if source.file is not None:
        selection = source.selection
        explained = read_file(
            source.file, Defaults(selection.derived_scalar_type, selection.dataset)
        )
    deployment = load_deployment(target.config)
    settings = {}
    if deployment.simulation_state is None:
        settings[f"{ENV_PREFIX}SIMULATION_STATE"] = str((out / _STATE).resolve())
    outcomes = Outcomes.of(explained or [])
    message_bytes = deployment.limits.message_megabytes * MEBIBYTE
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[spent]}"),
    )

    async def work() -> None:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            async with _addresses(target, settings, progress, log) as (addresses, supervisor):
                with neuropil.connect(
                    records=addresses["records"],
                    simulation=addresses["simulation"],
                    timeout=CALL_SECONDS,
                    message_bytes=message_bytes,
                ) as client:
                    job = asyncio.to_thread(
                        _score,
                        client,
                        source,
                        explained,
                        how,
                        out,
                        outcomes,
                        progress,
                        message_bytes,
                    )
                    await (job if supervisor is None else unless_a_service_ends(supervisor, job))

    with kept_log() as log:
        try:
            number = await until_signal(work())
        except neuropil.NeuropilError as error:
            raise LauncherFailure(f"{error}{_go_on(outcomes)}") from error
    if number is not None:
        say(f"stopped: {sentence(outcomes)}{_go_on(outcomes)}")
        return 128 + number
    say(sentence(outcomes))
    return 1 if outcomes.count(FAILED) or outcomes.not_put else 0


def _score(
    client: neuropil.Client,
    source: Source,
    explained: list[Explained] | None,
    how: HowToScore,
    out: Path,
    outcomes: Outcomes,
    progress: Progress,
    message_bytes: int,
) -> None:
    without: list[str] = []
    if explained is None:
        if source.proposing is None:
            tell = _step(progress, "Read explanations")
            explained = from_dataset(client, source.selection, tell)
        else:
            tell = _step(progress, "Propose explanations")
            explained, without = proposed(client, source.selection, source.proposing, out, tell)
        outcomes.rows = Outcomes.of(explained).rows
    for each in without:
        say(f"no explanation is proposed of {each}")
    if not explained:
        raise LauncherFailure("there is nothing to score: no component has an explanation")
    requests = requests_of(client, explained, how)
    check_size(requests, message_bytes)
    key = how.key or key_of(requests)
    task = progress.add_task("Score", total=len(explained), spent="")

    def told(completed: int, spent: neuropil.simulation.v1.SimulationCost) -> None:
        tokens = spent.prompt_tokens_computed + spent.completion_tokens
        words = f"{spent.call_count} calls, {tokens} tokens"
        progress.update(task, completed=completed, spent=words)

    def away(error: neuropil.NeuropilError) -> None:
        seconds = f"{how.away_seconds:.0f} seconds"
        say(f"the simulation service doesn't answer, trying for {seconds}: {error.message}")

    score_all(client, requests, outcomes, how, key, told, away)
    asked = {
        name: getattr(how, name)
        for name in ("simulator", "method", "calibration", "max_sequences", "seed")
    }
    facts = {"key": key, "asked_for": asked}
    try:
        paths = write_files(outcomes, out, facts)
    except OSError as error:
        raise LauncherFailure(f"no files in {out}: {error.strerror}") from error
    progress.stop()
    print_outcomes(outcomes)
    say(f"written: {', '.join(str(path) for path in paths)}")


@asynccontextmanager
async def _addresses(
    target: Target, settings: dict[str, str], progress: Progress, log: int
) -> AsyncIterator[tuple[dict[str, str], Supervisor | None]]:
    if target.simulation is not None:
        services = load_deployment(target.config).services
        records = target.records or services.records
        yield {"records": records, "simulation": target.simulation}, None
        return
    tell = _step(progress, "Start the services")
    tell(0, 1)
    async with running_deployment(
        target.config, FREE_PORTS, log=log, only=NEEDED, settings=settings
    ) as running:
        tell(1, 1)
        yield running.addresses, running.supervisor


def _check(target: Target) -> None:
    if target.records is not None and target.simulation is None:
        raise ConfigurationError("--records-address", "needs --address, of its simulation service")
    for option, address in (
        ("--address", target.simulation),
        ("--records-address", target.records),
    ):
        if address is not None:
            try:
                checked_address(address)
            except ValueError as error:
                raise ConfigurationError(option, str(error)) from error


def _go_on(outcomes: Outcomes) -> str:
    if not outcomes.count(SCORED, REUSED):
        return ""
    return "; what is scored is kept: the same command again goes on with it"
