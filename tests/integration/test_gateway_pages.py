"""What a person sees of the gateway, in a real browser and without any other host."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.load.processes import server


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    deployment = tmp_path_factory.mktemp("deployment") / "deployment.yaml"
    deployment.write_text("datasets: []")
    arguments = ("--config", str(deployment), "--port", "0", "--metrics-port", "0")
    with server("services.gateway", *arguments) as (address, _):
        yield f"http://{address}"


def rendered(chromium: str, url: str, profile: Path) -> str:
    """The page's document after its scripts ran; every host but this machine is unreachable."""
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=10000",
        "--dump-dom",
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
    return done.stdout


def test_the_routes_can_be_read_and_tried_without_a_network(
    gateway: str, chromium: str, tmp_path: Path
) -> None:
    document = rendered(chromium, f"{gateway}/docs", tmp_path)
    for route in ("/neuron_record", "/attention_head_record", "/derived_scalars", "/score"):
        assert f'data-path="{route}"' in document
    assert not re.findall(r'(?:src|href)="https?://(?!127\.0\.0\.1)', document)


def test_people_get_a_page_and_programs_a_greeting(
    gateway: str, chromium: str, tmp_path: Path
) -> None:
    assert httpx.get(gateway).json() == {"Hello": "World"}
    document = rendered(chromium, gateway, tmp_path)
    assert "<h1>Neuropil</h1>" in document
    for target in re.findall(r'href="([^"]+)"', document):
        assert httpx.get(f"{gateway}/{target}").status_code in {200, 503}, target
