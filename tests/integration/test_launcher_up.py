"""`neuropil up` and `neuropil serve` as a user runs them: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import neuropil
from tests.integration.launcher_running import FREE_PORTS, SECONDS, Launch, launcher, refused


@pytest.fixture
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    with launcher(tmp_path_factory) as start:
        yield start


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A deployment of one dataset with one record."""
    layer = tmp_path / "records" / "0"
    layer.mkdir(parents=True)
    sequences = [
        {"tokens": [" a", " cat", f" {n}"], "activations": [0.0, n + 1.5, 0.1]} for n in range(20)
    ]
    record = {
        "dataclass_name": "NeuronRecord",
        "neuron_id": {"layer_index": 0, "neuron_index": 3},
        "most_positive_activation_records": sequences[:10],
        "random_sample": sequences[10:],
    }
    (layer / "3.json").write_text(json.dumps(record))
    return write(tmp_path / "deployment.yaml", datasets=[dataset(tmp_path / "records")])


def dataset(folder: Path) -> dict[str, Any]:
    return {
        "short_name": "demo",
        "derived_scalar_type": "mlp_post_act",
        "user_visible_name": "Demo",
        "neuron_dataset_path": str(folder),
    }


def write(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


COMPONENT = {"dst": "mlp_post_act", "layerIndex": 0, "activationIndex": 3, "datasets": ["demo"]}


@pytest.mark.torch
def test_a_deployment_answers_and_ends_cleanly(launch: Launch, config: Path) -> None:
    up = launch("up", "--config", str(config), *FREE_PORTS)
    up.wait_until_ready(services=3)
    assert set(up.addresses) == {"records", "simulation", "cache"}
    assert httpx.get(up.url).json() == {"Hello": "World"}
    assert httpx.get(f"{up.url}/healthz").json() == {"records": True, "simulation": True}
    answer = httpx.post(f"{up.url}/neuron_record", json=COMPONENT)
    assert answer.json()["maxActivation"] == 10.5
    with neuropil.connect(records=up.addresses["records"]) as client:
        assert client.records.token_record("mlp_post_act", 0, 3, datasets=["demo"])

    # As a terminal does, the signal goes to the whole group of the launcher.
    os.killpg(up.process.pid, signal.SIGTERM)
    assert up.wait() == 0
    up.assert_nothing_is_left()
    assert up.words() == []


@pytest.mark.torch
def test_a_request_that_runs_at_the_signal_is_answered(launch: Launch, config: Path) -> None:
    up = launch("up", "--config", str(config), *FREE_PORTS)
    up.wait_until_ready(services=3)
    answers: list[httpx.Response] = []

    def score() -> None:
        # Takes seconds: the first one waits for the simulator's model.
        body = {**COMPONENT, "explanation": "cats", "maxSequences": 5}
        answers.append(httpx.post(f"{up.url}/score", json=body, timeout=SECONDS))

    caller = threading.Thread(target=score)
    caller.start()
    time.sleep(0.2)
    assert not answers
    up.process.send_signal(signal.SIGINT)
    assert up.wait() == 0
    caller.join()
    assert answers[0].status_code == 200, answers[0].text
    up.assert_nothing_is_left()


@pytest.mark.torch
def test_a_launcher_that_is_killed_leaves_nothing(launch: Launch, config: Path) -> None:
    up = launch("up", "--config", str(config), *FREE_PORTS)
    up.wait_until_ready(services=3)
    assert len(up.pids()) > 4
    up.process.kill()
    up.wait()
    up.assert_nothing_is_left()


@pytest.mark.torch
def test_a_service_that_dies_ends_the_deployment(launch: Launch, config: Path) -> None:
    up = launch("up", "--config", str(config), *FREE_PORTS)
    up.wait_until_ready(services=3)
    (records,) = [pid for pid, line in up.pids().items() if "serve records" in line]
    os.kill(records, signal.SIGKILL)
    assert up.wait() == 1
    assert up.words() == ["neuropil: error: records: ended by itself with signal 9 (SIGKILL)"]
    up.assert_nothing_is_left()


@pytest.mark.torch
def test_a_cache_that_dies_is_started_again(launch: Launch, config: Path) -> None:
    up = launch("up", "--config", str(config), *FREE_PORTS)
    up.wait_until_ready(services=3)
    (before,) = [pid for pid, line in up.pids().items() if "valkey-server" in line]
    os.kill(before, signal.SIGKILL)
    end = time.monotonic() + SECONDS
    while not [p for p, line in up.pids().items() if "valkey-server" in line and p != before]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert httpx.post(f"{up.url}/neuron_record", json=COMPONENT).status_code == 200


@pytest.mark.torch
def test_a_cache_that_is_configured_and_unreachable_is_warned_of(
    launch: Launch, tmp_path: Path, config: Path
) -> None:
    content = json.loads(config.read_text())
    path = write(tmp_path / "c.yaml", **content, cache={"url": "redis://127.0.0.1:1/0"})
    up = launch("up", "--config", str(path), *FREE_PORTS)
    up.wait_until_ready(services=2)
    assert httpx.post(f"{up.url}/neuron_record", json=COMPONENT).status_code == 200
    warnings = [line for line in up.log.read_text().splitlines() if '"warning"' in line]
    assert any("cache" in line for line in warnings), warnings


@pytest.mark.torch
def test_a_service_that_can_not_start_is_the_one_that_is_told_of(
    launch: Launch, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    path = write(tmp_path / "c.yaml", model={"name": "x", "path": str(tmp_path / "model")})
    up = launch("up", "--config", str(path), *FREE_PORTS)
    assert up.wait() == 2
    (words,) = up.words()
    assert words.startswith("neuropil: error: scalars: model.path: ")
    up.assert_nothing_is_left()


@pytest.mark.torch
def test_a_signal_while_it_starts_ends_it(launch: Launch, config: Path) -> None:
    up = launch("up", "--config", str(config), *FREE_PORTS)
    while len(up.pids()) < 4:
        time.sleep(0.01)
    up.process.send_signal(signal.SIGTERM)
    assert up.wait() == 0
    assert up.words() == []
    up.assert_nothing_is_left()


@pytest.mark.torch
def test_a_full_disk_behind_standard_output_is_told_of(launch: Launch, config: Path) -> None:
    with Path("/dev/full").open("w") as full:
        up = launch("up", "--config", str(config), *FREE_PORTS, stdout=full)
    assert up.wait() == 1
    assert up.words() == ["neuropil: error: standard output takes nothing: No space left on device"]
    up.assert_nothing_is_left()


def test_a_port_in_use_is_named(launch: Launch, config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for option in ("--http-port", "--records-port", "--simulation-port"):
            words = refused(launch, "up", "--config", str(config), *FREE_PORTS, option, port)
            assert words.startswith(f"{option}: port {port} of 127.0.0.1 is in use")


def test_one_port_for_two_services_is_refused(launch: Launch, config: Path) -> None:
    words = refused(launch, "up", "--config", str(config), "--http-port", "50051")
    assert words == "--http-port: port 50051 is that of --records-port too"


@pytest.mark.torch
def test_services_listen_on_the_ports_of_the_configuration(launch: Launch, config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    services = {"records": f"127.0.0.1:{port}", "simulation": f"127.0.0.1:{port}"}
    write(config, **json.loads(config.read_text()), services=services)
    up_with = ("up", "--config", str(config), "--http-port", "0")
    words = refused(launch, *up_with)
    assert words == f"services.simulation: port {port} is that of services.records too"
    up = launch(*up_with, "--simulation-port", "0")
    up.wait_until_ready(services=2)
    assert up.addresses["records"] == f"127.0.0.1:{port}"
    assert up.addresses["simulation"] != f"127.0.0.1:{port}"
    up.process.send_signal(signal.SIGTERM)
    assert up.wait() == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("datsets: []", "datsets: unknown key"),
        ("cache: {ttl: 3}", "cache.ttl: unknown key"),
        ("cache: {ttl_seconds: soon}", "cache.ttl_seconds: "),
        ("model: {name: x, path: /nowhere/x}", "model.path: /nowhere/x does not exist"),
        ("[1, 2]", ""),
        ("a: [", ""),
        ("\0", ""),
    ],
)
def test_a_configuration_that_can_not_be_used_is_one_line(
    launch: Launch, tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    assert words in refused(launch, "up", "--config", str(path), *FREE_PORTS)


def test_a_missing_configuration_is_one_line(launch: Launch, tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere" / "déploiement.yaml")
    assert path in refused(launch, "up", "--config", path)
    assert path in refused(launch, "serve", "records", "--config", path)


def test_an_unknown_variable_is_named(launch: Launch, config: Path) -> None:
    variable = {"NEUROPIL_CASH__URL": "redis://127.0.0.1"}
    assert "NEUROPIL_CASH__URL" in refused(launch, "up", "--config", str(config), **variable)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_open_services_listen_on_loopback_only(launch: Launch, config: Path, host: str) -> None:
    for command in (["up"], ["serve", "records"]):
        words = refused(launch, *command, "--config", str(config), "--host", host)
        assert words.startswith(f"--host: {host!r} is no IPv4 loopback address")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing command"),
        (["upp"], "No such command 'upp'"),
        (["up"], "'--config'"),
        (["up", "--config", "x", "--http-port", "70000"], "--http-port"),
        (["up", "--config", "x", "--http-port", "-1"], "--http-port"),
        (["up", "--config", "x", "--no-such-option"], "--no-such-option"),
        (["serve", "everything", "--config", "x"], "everything"),
    ],
)
def test_a_command_line_that_can_not_be_used_is_one_line(
    launch: Launch, arguments: list[str], words: str
) -> None:
    assert words in refused(launch, *arguments)


@pytest.mark.torch
def test_a_long_temporary_folder_is_named(launch: Launch, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    words = refused_start(launch, "up", "--config", str(config), *FREE_PORTS, TMPDIR=str(folder))
    assert words.startswith("neuropil: error: cache: TMPDIR: ")
    assert not list(folder.iterdir())


def refused_start(launch: Launch, *arguments: str, **variables: str) -> str:
    up = launch(*arguments, **variables)
    assert up.wait() == 2
    (words,) = up.words()
    up.assert_nothing_is_left()
    return words


@pytest.mark.parametrize(("service", "extra"), [("records", "records"), ("gateway", "gateway")])
def test_a_service_runs_alone_and_without_torch(
    tmp_path: Path, config: Path, service: str, extra: str
) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from services.launcher.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    arguments = ["serve", service, "--config", str(config), "--port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith(f"serving {service} 127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_service_whose_packages_are_missing_says_what_to_install(
    tmp_path: Path, config: Path
) -> None:
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "from services.launcher.cli import run; sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", "records", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'neuropil-services[records]'" in done.stderr
