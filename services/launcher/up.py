"""`neuropil up`: everything that a deployment needs, on one machine."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.launcher.failure import LauncherFailure
from services.launcher.health import wait_until_answering, wait_until_serving
from services.launcher.ports import check_reachable, reserve_ports
from services.launcher.processes import ChildCommand, ChildFailed
from services.launcher.service_names import DEFAULT_HTTP_PORT, configured_port
from services.launcher.supervision import Supervisor, supervised
from shared.listening import check_host
from shared.settings import ENV_PREFIX, Deployment, load_deployment

STOP_ORDER = (("gateway",), ("simulation",), ("scalars", "records"), ("cache",))
"""Who calls others ends before them, so that running requests find what they need."""

_SLOW_START_SECONDS = 30.0
_STOPPING = (signal.SIGINT, signal.SIGTERM)
# -P: the folder that the launcher was called in may have a folder `services` of its own.
_PYTHON = (sys.executable, "-P", "-m")


@dataclass(frozen=True)
class Listening:
    """Where the services listen; port 0 is a free one, None that of `services.*`."""

    host: str = "127.0.0.1"
    http_port: int = DEFAULT_HTTP_PORT
    records_port: int | None = None
    scalars_port: int | None = None
    simulation_port: int | None = None


@dataclass(frozen=True)
class RunningDeployment:
    """A deployment that answers."""

    supervisor: Supervisor
    url: str
    """Of the gateway; empty where it was not asked for."""
    addresses: dict[str, str]
    """Of the gRPC services and of the embedded cache, by name."""


@asynccontextmanager
async def running_deployment(
    config: Path,
    listening: Listening,
    *,
    log: int | None = None,
    only: Collection[str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[RunningDeployment]:
    """Start everything, or `only` some services, wait until it answers, and end it after the block.

    `log` is the file descriptor for the services' logs, by default standard error. `settings` are
    environment variables that the services get besides their addresses.

    Raises:
        ConfigurationError: if the configuration or a port can't be used.
        ChildFailed: if a service does not start.
    """
    deployment = load_deployment(config)
    check_host(listening.host)
    check_reachable(listening.host)
    ports = _reserve(deployment, listening, only)
    addresses = {
        name: f"{listening.host}:{port}" for name, port in ports.items() if name != "gateway"
    }
    url = f"http://{listening.host}:{ports['gateway']}" if "gateway" in ports else ""
    variables = dict(settings or {}) | {
        f"{ENV_PREFIX}SERVICES__{name.upper()}": address for name, address in addresses.items()
    }

    async def start(supervisor: Supervisor) -> None:
        async def start_cache() -> str | None:
            if deployment.cache.url is not None:
                return None
            return await supervisor.start(_cache_command(deployment))

        async def start_service(name: str) -> None:
            environment = dict(variables)
            if name == "records" and (embedded := await cache):
                environment[f"{ENV_PREFIX}CACHE__URL"] = addresses["cache"] = embedded
            command = _service_command(name, config, listening.host, ports[name], environment)
            await supervisor.start(command, ready_gateway if name == "gateway" else ready_service)
            missing.discard(name)

        async def ready_service(address: str) -> None:
            await wait_until_serving(address)
            healthy.release()

        async def ready_gateway(address: str) -> None:
            # It is ready when the others are: asked before, it would only fill the log.
            for _ in range(len(ports) - 1):
                await healthy.acquire()
            await wait_until_answering(f"http://{address}/healthz")

        missing = set(ports)
        healthy = asyncio.Semaphore(0)
        try:
            async with asyncio.TaskGroup() as group:
                cache = group.create_task(start_cache())
                starting = [group.create_task(start_service(name)) for name in ports]
                while (await asyncio.wait(starting, timeout=_SLOW_START_SECONDS))[1]:
                    say(f"still starting: {', '.join(sorted(missing))}")
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async with supervised(STOP_ORDER, start, log=log) as supervisor:
        yield RunningDeployment(supervisor, url, addresses)


async def run_up(config: Path, listening: Listening) -> None:
    """Run a deployment until SIGINT or SIGTERM; a second signal ends it at once.

    Raises:
        ConfigurationError: if the configuration or a port can't be used.
        ChildFailed: if a service does not start, ends by itself, or does not end cleanly.
        LauncherFailure: if standard output can't be written to.
    """
    unclean: list[str] = []

    async def live() -> None:
        nonlocal unclean
        async with running_deployment(config, listening) as running:
            unclean = running.supervisor.unclean
            _announce(running)
            raise await running.supervisor.failure()

    await until_signal(live())
    if unclean:
        raise ChildFailed(", ".join(unclean), "was killed, or ended with an error", 1)


async def until_signal(work: Coroutine[None, None, None]) -> int | None:
    """Run `work`, and cancel it at each SIGINT and SIGTERM; give the first signal's number."""
    task = asyncio.ensure_future(work)
    received: list[int] = []

    def cancel(number: int) -> None:
        received.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in _STOPPING:
        loop.add_signal_handler(number, cancel, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    finally:
        for number in _STOPPING:
            loop.remove_signal_handler(number)
    return received[0] if received else None


def say(message: str) -> None:
    """Tell people something, beside the logs."""
    print(f"neuropil: {message}", file=sys.stderr, flush=True)


def _announce(running: RunningDeployment) -> None:
    lines = [f"ready {running.url}"]
    lines += [f"{name} {address}" for name, address in running.addresses.items()]
    try:
        print("\n".join(lines), flush=True)
    except OSError as error:
        raise LauncherFailure(f"standard output takes nothing: {error.strerror}") from error


def _reserve(
    deployment: Deployment, listening: Listening, only: Collection[str] | None
) -> dict[str, int]:
    given = {
        "records": listening.records_port,
        "scalars": listening.scalars_port,
        "simulation": listening.simulation_port,
    }
    if deployment.model is None:
        del given["scalars"]
    wanted = {name: _port(deployment, name, port) for name, port in given.items()}
    wanted["gateway"] = ("--http-port", listening.http_port)
    if only is not None:
        wanted = {name: source for name, source in wanted.items() if name in only}
    reserved = reserve_ports(listening.host, dict(wanted.values()))
    return {name: reserved[source] for name, (source, _) in wanted.items()}


def _port(deployment: Deployment, name: str, given: int | None) -> tuple[str, int]:
    """What sets a service's port, and the port."""
    if given is None and name in deployment.services.model_fields_set:
        return f"services.{name}", configured_port(deployment, name)
    return f"--{name}-port", configured_port(deployment, name) if given is None else given


def _service_command(
    name: str, config: Path, host: str, port: int, environment: dict[str, str]
) -> ChildCommand:
    arguments = ["serve", name, "--config", str(config), "--host", host, "--port", str(port)]
    arguments += ["--metrics-port", "0", "--end-with-parent"]
    return ChildCommand(name, [*_PYTHON, "services.launcher", *arguments], environment)


def _cache_command(deployment: Deployment) -> ChildCommand:
    module = "services.launcher.embedded_cache"
    return ChildCommand("cache", [*_PYTHON, module, str(deployment.cache.memory_megabytes)])
